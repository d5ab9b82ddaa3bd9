// A labelled native slider with a box to type the number in: both take the keyboard, and a screen
// reader says their names.
function render({ model, el }) {
  // The page loads this module once per slider, so a counter would begin anew.
  const id = `steerlens-slider-${Math.random().toString(36).slice(2)}`;
  const label = document.createElement("label");
  const slider = document.createElement("input");
  const box = document.createElement("input");
  label.htmlFor = slider.id = id;
  slider.type = "range";
  box.type = "number";
  for (const input of [slider, box]) {
    input.min = model.get("min");
    input.max = model.get("max");
    input.step = model.get("step");
    // JupyterLab would take the arrow keys: they move between cells and headings.
    input.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  const show = () => {
    label.textContent = model.get("description");
    box.setAttribute("aria-label", `${model.get("description")}, as a number`);
    slider.value = box.value = model.get("value");
  };
  const take = (text) => {
    const number = Number(text);
    if (text === "" || Number.isNaN(number)) return show();
    const bounded = Math.min(Math.max(number, model.get("min")), model.get("max"));
    slider.value = box.value = bounded;
    model.set("value", bounded);
    model.save_changes();
  };
  slider.addEventListener("input", () => take(slider.value));
  box.addEventListener("change", () => take(box.value));
  model.on("change:value", show);
  model.on("change:description", show);
  show();
  el.classList.add("steerlens-slider");
  el.append(label, slider, box);
}

export default { render };
