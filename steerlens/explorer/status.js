// A line that screen readers announce as it changes. Text only: nothing in it is markup.
function render({ model, el }) {
  const line = document.createElement("div");
  line.setAttribute("role", "status");
  line.setAttribute("aria-live", "polite");
  line.dir = "auto";
  const show = () => {
    line.textContent = model.get("value");
  };
  model.on("change:value", show);
  show();
  el.classList.add("steerlens-status");
  el.append(line);
}

export default { render };
