"use strict";
// What the page does: everything that comes from the server is put in as text, never as HTML.
const $ = (id) => document.getElementById(id);
const pictures = [];
const cards = [];
let most = { bytes: 0, images: 8, question: 4000, tokens: 1024 };
let running = null;

const fail = (text) => { $("error").textContent = text; };
const element = (name, text, kind) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

async function start() {
  const state = await (await fetch("/state")).json();
  most = state.most;
  $("tokens").value = state.max_new_tokens;
  $("tokens").max = most.tokens;
  $("about").textContent = state.models.length > 1 ? "Two models, asked the same." : "Ask about pictures; switch its stacks off and on.";
  state.models.forEach(card);
  $("example").hidden = !state.examples;
  if (state.examples) $("question").placeholder = "A question. What this run was asked, “Show an example” shows.";
}

let next = 0;
async function example() {
  fail("");
  const response = await fetch(`/example/${next++}`), shown = await response.json();
  if (!response.ok) { fail(shown.error); return; }
  $("pictures").replaceChildren();
  pictures.length = 0;
  shown.pictures.forEach((address) => keep(address, "an example"));
  $("question").value = shown.question;
  $("known").textContent = `People answered: ${[...new Set(shown.references)].join(", ") || "(not said)"}`;
}

function keep(address, name) {
  pictures.push(address);
  const figure = element("figure"), image = element("img"), away = element("button", "×");
  image.src = address;
  image.alt = name;
  away.type = "button";
  away.setAttribute("aria-label", `remove ${name}`);
  away.onclick = () => { pictures.splice(pictures.indexOf(address), 1); figure.remove(); };
  figure.append(image, away);
  $("pictures").append(figure);
}

function card(facts, index) {
  const made = $("model").content.cloneNode(true).querySelector("section");
  const find = (selector) => made.querySelector(selector);
  find("h2").textContent = facts.name;
  find(".facts").textContent = Object.values(facts.parts).join(" · ") + ` · ${facts.parameters.toLocaleString("en")} parameters`;
  const boxes = facts.stacks.map((stack) => {
    const label = element("label"), box = element("input");
    box.type = "checkbox";
    box.checked = true;
    box.dataset.stack = stack.number;
    label.append(box, ` ${stack.number}: ${stack.part} layer ${stack.layer} `, element("small", stack.what));
    find(".stacks").append(label);
    return box;
  });
  if (!boxes.length) find("fieldset").replaceChildren(element("legend", "Stacks"), element("p", "This model has none."));
  else {
    find(".all").onclick = () => boxes.forEach((box) => { box.checked = true; });
    find(".none").onclick = () => boxes.forEach((box) => { box.checked = false; });
    find(".swap").disabled = boxes.length < 2;
  }
  const switches = () => ({
    off: boxes.filter((box) => !box.checked).map((box) => Number(box.dataset.stack)),
    swapped: boxes.length > 1 && find(".swap").checked,
  });
  const held = { find, switches, answer: null, asked: null };
  find(".look").onclick = () => look(held, index);
  cards.push(held);
  $("models").append(made);
}

async function add(files) {
  fail("");
  for (const file of files) {
    if (!file.type.startsWith("image/")) { fail(`${file.name} is no picture.`); continue; }
    if (pictures.length >= most.images) { fail(`At most ${most.images} pictures at a time.`); break; }
    const address = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    });
    if (pictures.reduce((sum, each) => sum + each.length, address.length) > most.bytes) {
      fail(`${file.name} is too large: all pictures together may have ${Math.round(most.bytes / 2 ** 20)} MiB.`);
      continue;
    }
    keep(address, file.name || "a picture");
    $("known").textContent = "";
  }
  $("files").value = "";
}

const send = (path, body, signal) =>
  fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

async function ask(event) {
  event.preventDefault();
  if (running) return;
  fail("");
  const asked = {
    question: $("question").value,
    images: [...pictures],
    max_new_tokens: Number($("tokens").value),
    switches: cards.map((each) => each.switches()),
  };
  running = new AbortController();
  $("ask").disabled = true;
  $("stop").disabled = false;
  for (const each of cards) {
    each.find(".answer").textContent = "";
    each.find(".answer").classList.remove("failed");
    each.find(".timing").textContent = "";
    each.find(".looked").hidden = true;
    each.find(".look").disabled = true;
  }
  try {
    const response = await send("/ask", asked, running.signal);
    if (!response.ok) { fail((await response.json()).error); return; }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      lines.filter(Boolean).forEach((line) => take(JSON.parse(line), asked));
    }
  } catch (error) {
    if (error.name !== "AbortError") fail(`The server does not answer (${error.message}); is dslight chat still running?`);
  } finally {
    running = null;
    $("ask").disabled = false;
    $("stop").disabled = true;
  }
}

function take(event, asked) {
  const held = cards[event.model], box = held.find(".answer");
  if (event.error !== undefined) { box.textContent = event.error; box.classList.add("failed"); return; }
  if (event.text !== undefined) { box.textContent += event.text; return; }
  box.textContent = event.answer || "(nothing)";
  held.answer = event.answer;
  held.asked = asked;
  held.find(".timing").textContent = `${event.seconds.toFixed(2)} s`;
  held.find(".look").disabled = false;
}

async function look(held, index) {
  const button = held.find(".look");
  button.disabled = true;
  fail("");
  try {
    const response = await send("/look", { ...held.asked, answer: held.answer, model: index });
    const seen = await response.json();
    if (!response.ok) { fail(seen.error); return; }
    show(held, seen);
  } catch (error) {
    fail(`The server does not answer (${error.message}); is dslight chat still running?`);
  } finally {
    button.disabled = false;
  }
}

function show(held, seen) {
  const picture = (address, alt) => Object.assign(element("img"), { src: address, alt });
  held.find(".maps").replaceChildren(...seen.maps.map((map) => {
    const figure = element("figure");
    figure.append(picture(map.picture, `heat map of ${map.title}`),
      element("figcaption", `${map.title}: sum ${map.sum.toPrecision(2)}, size ${map.size.toPrecision(2)}`));
    return figure;
  }));
  if (seen.note) held.find(".maps").append(element("p", seen.note));
  else if (!seen.maps.length) held.find(".maps").append(element("p", "No picture was shown."));
  held.find("tbody").replaceChildren(...seen.norms.map((norm) => {
    const row = element("tr");
    row.append(element("td", norm.stack), element("td", norm.relative.toFixed(3)), element("td", norm.cosine.toFixed(3)),
      element("td", `${Math.round(100 * norm.filled)} %`));
    return row;
  }));
  held.find(".views").replaceChildren(...seen.views.map((view, i) => picture(view, `view ${i + 1}`)));
  held.find(".prompt").replaceChildren(...seen.tokens.map((token) =>
    typeof token === "number" ? element("span", `${token} visual`, "visual") : element("span", token)));
  held.find(".looked").hidden = false;
}

$("form").onsubmit = ask;
$("stop").onclick = () => running && running.abort();
$("example").onclick = () => example().catch((error) => fail(`No example: ${error.message}`));
$("files").onchange = (event) => add(event.target.files);
$("question").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form").requestSubmit(); } };
const drop = $("drop");
for (const name of ["dragover", "dragenter"]) document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
document.addEventListener("drop", (event) => add(event.dataTransfer.files));
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) add(event.clipboardData.files); });
start().catch((error) => fail(`The page cannot be filled: ${error.message}`));
