"""The page in headless Chromium, without a network: it draws, zooms and shows values, and no error is told."""

import shutil

import pytest

from bert_toolkit.reporting.results import write_results
from bert_toolkit.run_page import write_run_page

pytest.importorskip("plotly")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            if "Executable doesn't exist" not in str(error):
                raise
            pytest.skip("needs Chromium")
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a page once all is drawn; whatever the browser complains of or asks for stands in `said`."""
    context = browser.new_context(viewport={"width": 1240, "height": 900}, offline=True)
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if not request.url.startswith("blob:") else None)

    def open_page(path, width=1240):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.goto(path.as_uri())
        tab.wait_for_selector("body[data-drawn]", timeout=60_000)
        assert said == [path.as_uri()]
        return tab

    yield open_page
    context.close()


def test_a_plain_run_is_drawn(opened, faulty_run):
    tab = opened(faulty_run / "report.html")
    assert tab.locator("section h2").all_inner_texts() == ["Findings", "Curves", "Layers", "Data and settings"]
    assert tab.locator("figure .main-svg").count() >= 5
    assert tab.locator("figure .heatmaplayer image").count() == 2
    assert tab.locator("figure .annotation-text").first.text_content() == "not updated"


STEPS, SAMPLES = [9, 30], [3.5, 7]  # the same range: heat maps count the samples of steps 1, 2, 5, 6, 12, 18, 24, 30


@pytest.mark.parametrize(("zoomed", "limits"), [(0, STEPS), (-1, SAMPLES)], ids=["curve", "heat map"])
def test_charts_zoom_together(opened, faulty_run, zoomed, limits):
    tab = opened(faulty_run / "report.html")
    chart = f"[...document.querySelectorAll('figure')].at({zoomed})"
    axes = "[...document.querySelectorAll('figure')].map(f => f._fullLayout.xaxis)"
    is_zoomed = f"(axis => String(axis.range) === String(axis.type === 'category' ? {SAMPLES} : {STEPS}))"
    assert not tab.evaluate(f"{axes}.some({is_zoomed})")
    tab.evaluate(f"Plotly.relayout({chart}, {{'xaxis.range[0]': {limits[0]}, 'xaxis.range[1]': {limits[1]}}})")
    tab.wait_for_function(f"{axes}.every({is_zoomed})")
    tab.evaluate(f"Plotly.relayout({chart}, {{'xaxis.autorange': true}})")
    tab.wait_for_function(f"!{axes}.some({is_zoomed})")


def test_samples_of_a_heat_map_are_equally_wide_and_named_by_their_steps(opened, faulty_run):
    axes = "[...document.querySelectorAll('figure:has(.heatmaplayer image)')].map(f => f._fullLayout.xaxis)"
    tab = opened(faulty_run / "report.html")
    steps = ["1", "2", "5", "6", "12", "18", "24", "30", "36", "42", "48"]
    assert tab.evaluate(f"{axes}.map(axis => axis._categories.map(String))") == [steps, steps]
    assert tab.evaluate(f"{axes}.map(axis => axis.range)") == [[-0.5, 10.5]] * 2
    shown = tab.locator("figure:has(.heatmaplayer image)").first.locator(".xtick text").all_text_contents()
    assert shown == steps


def test_hovering_tells_the_value(opened, faulty_run):
    tab = opened(faulty_run / "report.html")
    chart = tab.locator("figure:has(.heatmaplayer image)").last
    chart.scroll_into_view_if_needed()
    box = chart.locator(".nsewdrag").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.1, steps=3)
    chart.locator(".hoverlayer .hovertext").wait_for()
    told = chart.locator(".hoverlayer .hovertext").text_content()
    assert "embeddings" in told and "step" in told and "‖update‖" in told


def test_ticks_of_a_logarithmic_axis_say_what_they_are(opened, tmp_path):
    norms = [0.3, 0.4, 0.6, 7.0]
    write_results(tmp_path, {"log_history": [{"step": step, "grad_norm": norm} for step, norm in enumerate(norms)]})
    tab = opened(write_run_page(tmp_path))
    ticks = tab.evaluate(
        "[...document.querySelectorAll('figure')].filter(f => f._fullLayout?.yaxis.type === 'log').flatMap(f => "
        "f._fullLayout.yaxis._vals.filter(tick => !tick.minor && tick.text).map(tick => [10 ** tick.x, tick.text]))"
    )
    assert [float(text) for _, text in ticks] == pytest.approx([value for value, _ in ticks]) == [0.5, 1, 2, 5]


def test_on_a_phone_nothing_is_cut_and_no_number_is_broken(opened, predicted_run):
    tab = opened(predicted_run / "report.html", width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    lines = "[...document.querySelectorAll('td.number')].map(cell => { const range = document.createRange(); "
    lines += "range.selectNodeContents(cell); return range.getClientRects().length; })"
    assert set(tab.evaluate(lines)) == {1}
    wide = "[...document.querySelectorAll('figure')].filter(f => f.getBoundingClientRect().right > 390).length"
    assert tab.evaluate(wide) == 0


def test_text_of_the_run_is_never_run(opened, hostile_run, healthy_run, tmp_path):
    tab = opened(write_run_page(hostile_run, healthy_run, tmp_path / "page.html"))
    assert "hacked" not in tab.title()
    assert tab.evaluate("document.querySelectorAll('img').length") == 0
    assert "<script>" in tab.locator("#predictions").inner_text()
    assert tab.locator("figure .annotation-text").filter(has_text="<script>").count() > 1, (
        "labels show what was written"
    )
