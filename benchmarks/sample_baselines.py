"""How hard the bundled sample is: a constant guess, a logistic regression on word sequences, and the recipe.

    python benchmarks/sample_baselines.py
    python benchmarks/sample_baselines.py --seeds 1 2 3

Prints the Matthews correlation on the in-domain and the out-of-domain dev rows, for the recipe as mean and standard
deviation over the seeds, and writes benchmarks/results/sample_baselines.json. The recipe runs with its defaults on the
sample, each seed in a process of its own; with `--seeds` but no numbers it is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from bert_toolkit.data.cola import load_cola
from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.metrics import matthews_correlation

HERE = Path(__file__).parent
DOMAINS = ("in-domain dev", "out-of-domain dev")


def score_constant_guess(corpus: CorpusSplits) -> list[float]:
    """Scores of always naming the more frequent class of the training rows, by domain."""
    majority = max(corpus.train["label"][:], key=corpus.train["label"][:].count)
    return [
        matthews_correlation([majority] * len(rows), rows["label"][:]) for rows in (corpus.validation, corpus.test)
    ]


def score_word_sequences(corpus: CorpusSplits, longest: int) -> list[float]:
    """Logistic regression on 1- to `longest`-grams; the strength of its penalty hardly matters between 1 and 10."""
    vectorizer = CountVectorizer(ngram_range=(1, longest), token_pattern=r"[\w']+|[?.,]")
    model = LogisticRegression(C=10.0, max_iter=2000)
    model.fit(vectorizer.fit_transform(corpus.train["sentence"][:]), corpus.train["label"][:])
    return [
        matthews_correlation(model.predict(vectorizer.transform(rows["sentence"][:])), rows["label"][:])
        for rows in (corpus.validation, corpus.test)
    ]


def score_recipe(seed: int) -> list[float]:
    """Scores of recipes/cola.py with its defaults, by domain."""
    with tempfile.TemporaryDirectory() as folder:
        output_dir = Path(folder) / "run"
        recipe = [str(HERE.parent / "recipes" / "cola.py"), "--dataset", "sample"]
        command = [sys.executable, *recipe, "--seed", str(seed), "--output_dir", str(output_dir)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results = json.loads((output_dir / "results.json").read_text())
    print(f"seed {seed}: {results['model']}", flush=True)
    return [results["validation_matthews_correlation"], results["matthews_correlation"]]


def main() -> None:
    """Scores every model and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="seeds of the recipe's runs")
    arguments = parser.parse_args()

    corpus = load_cola("sample")
    table: dict[str, list[list[float]]] = {
        "constant guess": [score_constant_guess(corpus)],
        "logistic regression, single words": [score_word_sequences(corpus, 1)],
        "logistic regression, 1- to 3-grams": [score_word_sequences(corpus, 3)],
    }
    if arguments.seeds:
        table["recipes/cola.py"] = [score_recipe(seed) for seed in arguments.seeds]

    print(f"| Matthews correlation | {' | '.join(DOMAINS)} |\n|---|---|---|")
    for name, runs in table.items():
        cells = []
        for scores in zip(*runs, strict=True):
            spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.3f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")
    rows = {"in-domain dev": len(corpus.validation), "out-of-domain dev": len(corpus.test), "train": len(corpus.train)}
    results = {"rows": rows, "seeds": arguments.seeds, "domains": DOMAINS, "scores": table}
    (HERE / "results" / "sample_baselines.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
