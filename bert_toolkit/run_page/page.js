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
  let following = false;
  for (const zoomed of overSteps) {
    zoomed.on("plotly_relayout", async (change) => {
      const range = change["xaxis.range[0]"] === undefined ? null : [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (following || (range === null && !change["xaxis.autorange"])) return;
      following = true;
      const others = overSteps.filter((chart) => chart !== zoomed);
      const update = range === null ? { "xaxis.autorange": true } : { "xaxis.range": range };
      await Promise.all(others.map((chart) => Plotly.relayout(chart, update)));
      following = false;
    });
  }
  document.body.dataset.drawn = overSteps.length;
})();
