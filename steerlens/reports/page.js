"use strict";
// What the report does beside tables.js: tell about tokens.

async function readDetails() {
  const packed = document.getElementById("token-details").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

const MISSING = "–";

function show(value, digits, signed) {
  if (value === null || value === undefined) return MISSING;
  const text = value.toFixed(digits);
  return (signed && value > 0 ? "+" : "") + text.replace("-", "−");
}

function element(name, text, parent, className) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

function addRow(table, name, value) {
  const row = element("tr", null, table);
  element("th", name, row).scope = "row";
  element("td", value, row);
}

function arrow(before, after) {
  const change = before === null || after === null ? "" : ` (${show(after - before, 2, true)})`;
  return `${show(before, 2)} → ${show(after, 2)}${change}`;
}

function addChanges(parent, title, flat, words) {
  const table = element("table", null, parent);
  element("caption", title, table);
  for (let i = 0; i < flat.length; i += 2) addRow(table, words[flat[i]], show(flat[i + 1], 1, true));
}

function describe(tooltip, token, index, strip, words) {
  tooltip.replaceChildren();
  const role = token.closest(".tokens").dataset.role;
  const name = element("p", null, tooltip, "name");
  element("code", token.textContent, name);
  const steered = strip.steered[index] ? ", steered here" : "";
  const read = strip.read[index] ? ", vector read here" : "";
  const offset = strip.offset[index];
  const position = offset === null ? "" : ` position ${index + offset},`;
  element("span", `${position} ${role}${steered}${read}`, name, "where");
  const table = element("table", null, tooltip);
  addRow(table, "KL(steered‖baseline), nats", show(strip.kl[index], 3));
  addRow(table, "log-probability", arrow(strip.logprob_baseline[index], strip.logprob_steered[index]));
  addRow(table, "projection", arrow(strip.projection_before[index], strip.projection_after[index]));
  addRow(table, "entropy change, nats", show(strip.entropy_change[index], 3, true));
  if (strip.promoted[index].length || strip.suppressed[index].length) {
    const changes = element("div", null, tooltip, "changes");
    addChanges(changes, "promoted, nats", strip.promoted[index], words);
    addChanges(changes, "suppressed, nats", strip.suppressed[index], words);
  }
}

function place(tooltip, token) {
  const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const { width, height } = tooltip.getBoundingClientRect();
  const below = box.bottom + 8 + height < innerHeight;
  tooltip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
  tooltip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`;
}

function tellAboutTokens(details) {
  const tooltip = document.getElementById("tooltip");
  let current = null;
  const hide = () => {
    tooltip.hidden = true;
    if (current) current.classList.remove("current");
    current = null;
  };
  document.querySelectorAll(".strip").forEach((box) => {
    const strip = details.strips[Number(box.dataset.strip)];
    const tokens = [...box.querySelectorAll(".tokens b")];
    const tell = (index) => {
      hide();
      current = tokens[index];
      current.classList.add("current");
      describe(tooltip, current, index, strip, details.words);
      tooltip.hidden = false;
      place(tooltip, current);
    };
    box.addEventListener("pointerover", (event) => {
      const index = tokens.indexOf(event.target.closest("b"));
      if (index >= 0) tell(index); else hide();
    });
    box.addEventListener("pointerleave", hide);
    box.addEventListener("blur", hide);
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step || !tokens.length) return;
      event.preventDefault();
      const index = Math.max(0, Math.min(tokens.length - 1, tokens.indexOf(current) + step));
      tell(index);
    });
  });
  addEventListener("scroll", hide, { passive: true });
}

readDetails().then(tellAboutTokens);
