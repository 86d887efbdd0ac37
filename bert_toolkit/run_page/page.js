// Unpacks plotly.js, draws every chart of the page, and lets the charts over steps zoom together.
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const source = await new Response(unpacked).text();
  const script = document.createElement("script");
  script.src = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  await new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = () => reject(new Error("plotly.js did not load"));
    document.head.append(script);
  });

  const charts = JSON.parse(document.getElementById("charts").textContent);
  const overSteps = [];
  for (const place of document.querySelectorAll("figure[data-chart]")) {
    const chart = charts[place.dataset.chart];
    await Plotly.newPlot(place, chart.data, chart.layout, { responsive: true, displaylogo: false });
    if (!chart.layout.meta) overSteps.push(place);
  }
  // A heat map counts its samples, 0 for the first: a range of it is turned into steps, and back for the next one.
  const samplesOf = (chart) => (chart.layout.xaxis.type === "category" ? chart.data[0].x : null);
  const turned = (range, from, to) =>
    range.map((x) => {
      if (from.length < 2) return to[0] + x - from[0];
      const next = Math.max(1, from.findIndex((place, at) => place >= x || at === from.length - 1));
      const share = (x - from[next - 1]) / (from[next] - from[next - 1]);
      return to[next - 1] + share * (to[next] - to[next - 1]);
    });
  const toSteps = (range, samples) => (samples ? turned(range, [...samples.keys()], samples) : range);
  const toSamples = (range, samples) => (samples ? turned(range, samples, [...samples.keys()]) : range);
  let following = false;
  for (const zoomed of overSteps) {
    zoomed.on("plotly_relayout", async (change) => {
      const range = change["xaxis.range[0]"] === undefined ? null : [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (following || (range === null && !change["xaxis.autorange"])) return;
      following = true;
      const steps = range && toSteps(range, samplesOf(zoomed));
      const update = (chart) =>
        steps ? { "xaxis.range": toSamples(steps, samplesOf(chart)) } : { "xaxis.autorange": true };
      const others = overSteps.filter((chart) => chart !== zoomed);
      await Promise.all(others.map((chart) => Plotly.relayout(chart, update(chart))));
      following = false;
    });
  }
  document.body.dataset.drawn = overSteps.length;
})();
