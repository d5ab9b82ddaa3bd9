// A plotly figure. Plotly itself (5 MB) is sent once per page, to whichever plot asks first, and not
// with every figure; a new figure is drawn over the old one.
const shared = (globalThis.steerlensPlotly ??= { asked: 0, loaded: false });
shared.ready ??= new Promise((resolve) => {
  shared.resolve = resolve;
});
const PATIENCE = 20000;

function load(buffer) {
  if (shared.loaded) return;
  shared.loaded = true;
  const module = { exports: {} };
  const source = new TextDecoder().decode(buffer);
  new Function("module", "exports", "define", source)(module, module.exports, undefined);
  shared.resolve(module.exports);
}

function render({ model, el }) {
  const graph = document.createElement("div");
  el.append(graph);
  el.classList.add("steerlens-plot");
  model.on("msg:custom", (message, buffers) => {
    if (message.kind === "library") load(buffers[0]);
  });
  if (!shared.loaded && Date.now() - shared.asked > PATIENCE) {
    shared.asked = Date.now();
    model.send({ kind: "library" });
  }
  const clicked = ({ points }) => {
    const [point] = points;
    const index = point.pointNumber ?? point.pointIndex;
    model.send({ kind: "click", trace: point.curveNumber, index, x: point.x, y: point.y });
  };
  const draw = async () => {
    const Plotly = await shared.ready;
    const text = model.get("drawing");
    graph.style.display = text ? "" : "none";
    if (!text) return;
    const { data, layout } = JSON.parse(text);
    await Plotly.react(graph, data, layout, { responsive: true, displaylogo: false });
    graph.removeAllListeners("plotly_click");
    graph.on("plotly_click", clicked);
  };
  const show = () => draw().catch((error) => console.error("steerlens plot:", error));
  model.on("change:drawing", show);
  show();
}

export default { render };
