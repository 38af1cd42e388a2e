"use strict";
// One rater's page: shows an entry, takes three judgements, and goes on when the server has them on its disk.

const SCALES = {
  realism: [["1", "Not at all"], ["2", "Hardly"], ["3", "Perhaps"], ["4", "Likely"], ["5", "Certainly"]],
  consistency: [["1", "Not at all"], ["2", "Rather not"], ["3", "Unclear"], ["4", "Rather"], ["5", "Fully"]],
  guess: [["human", "Human"], ["synthetic", "Synthetic"]],
};
const NAMES = Object.keys(SCALES);
const at = (id) => document.getElementById(id);

let session = null;
let place = 0;
let marked = 0;
let shownAt = 0;
let isSaving = false;

function entry() {
  return session.entries[place];
}

function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`)?.value ?? null;
}

function numRated() {
  return session.entries.filter((one) => one.id in session.ratings).length;
}

function buildChoices() {
  for (const name of NAMES) {
    const box = document.querySelector(`[data-scale="${name}"] .choices`);
    SCALES[name].forEach(([value, text], index) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), {type: "radio", name, value});
      const key = Object.assign(document.createElement("b"), {textContent: String(index + 1)});
      key.setAttribute("aria-hidden", String(name === "guess"));
      label.append(input, key, Object.assign(document.createElement("span"), {textContent: text}));
      box.append(label);
    });
  }
}

function mark(index) {
  marked = Math.max(0, Math.min(NAMES.length - 1, index));
  document.querySelectorAll("fieldset").forEach((one, at) => one.classList.toggle("marked", at === marked));
}

function markFirstOpen() {
  const open = NAMES.findIndex((name) => chosen(name) === null);
  mark(open < 0 ? marked : open);
  at("save").setAttribute("aria-disabled", String(open >= 0));
}

function showProgress() {
  const rated = numRated(), total = session.entries.length;
  at("place").textContent = `Answer ${place + 1} of ${total}`;
  at("rated").textContent = `${rated} rated · ${session.rater}`;
  Object.assign(at("progress"), {max: total, value: rated});
}

function showEntry() {
  const one = entry(), rating = session.ratings[one.id];
  at("entry").hidden = false;
  at("done").hidden = true;
  at("heading").textContent = `Answer ${place + 1} of ${session.entries.length}${rating ? ", rated" : ""}`;
  at("card").replaceChildren(...one.card.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), {textContent: name}),
    Object.assign(document.createElement("dd"), {textContent: value, dir: "auto"}),
  ]));
  at("about").textContent = one.about;
  at("domain").textContent = one.domain ? ` · ${one.domain}` : "";
  at("question").textContent = one.question;
  at("options").textContent = one.options.length ? `Options: ${one.options.join(" · ")}` : "";
  at("answer").textContent = one.answer;
  at("form").reset();
  for (const name of NAMES) {
    for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
      input.checked = rating !== undefined && String(rating[name]) === input.value;
    }
  }
  at("back").disabled = place === 0;
  at("alert").textContent = "";
  shownAt = performance.now();
  mark(0);
  markFirstOpen();
  showProgress();
  window.scrollTo(0, 0);
  at("heading").focus({preventScroll: true});
}

function showDone() {
  at("entry").hidden = true;
  at("done").hidden = false;
  at("done-text").textContent = `${session.entries.length} answers are rated by ${session.rater}.`;
  showProgress();
  at("place").textContent = "Finished";
  at("done-title").focus();
}

function goTo(index) {
  if (index < 0 || isSaving) return;
  if (index >= session.entries.length) {
    const open = session.entries.findIndex((one) => !(one.id in session.ratings));
    if (open < 0) return showDone();
    index = open;
  }
  place = index;
  showEntry();
}

function choose(index) {
  const name = NAMES[marked], choice = SCALES[name][index];
  if (!choice) return;
  document.querySelector(`input[name="${name}"][value="${choice[0]}"]`).checked = true;
  at("status").textContent = `${name} ${choice[1]}`;
  if (marked < NAMES.length - 1) mark(marked + 1);
  at("save").setAttribute("aria-disabled", String(NAMES.some((one) => chosen(one) === null)));
}

function complain(text) {
  at("alert").textContent = "";
  at("alert").textContent = text;
}

async function save() {
  if (isSaving) return;
  const open = NAMES.findIndex((name) => chosen(name) === null);
  if (open >= 0) {
    mark(open);
    complain(`Answer all three first: ${NAMES[open] === "guess" ? "your guess" : NAMES[open]} is missing.`);
    return;
  }
  isSaving = true;
  const rating = {realism: Number(chosen("realism")), consistency: Number(chosen("consistency")), guess: chosen("guess")};
  try {
    const reply = await fetch("api/ratings", {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({entry: entry().id, ...rating, seconds: Math.round((performance.now() - shownAt) / 100) / 10}),
    });
    const content = await reply.json();
    if (!reply.ok) throw new Error(content.error);
    session.ratings[entry().id] = rating;
  } catch (error) {
    const isGone = error instanceof TypeError;
    complain(isGone ? "Not saved: the program that serves this page has ended. Start it again and open its new address;"
      + " the ratings before this one are kept." : `Not saved: ${error.message} Press Enter to try again.`);
    return;
  } finally {
    isSaving = false;
  }
  goTo(place + 1);
  at("status").textContent = `Saved. ${numRated()} of ${session.entries.length} rated.`;
}

function onKey(event) {
  const isOnButton = event.target instanceof HTMLButtonElement || event.target instanceof HTMLAnchorElement;
  if (event.ctrlKey || event.altKey || event.metaKey || !at("keys").checked || event.repeat) return;
  if (at("entry").hidden) {
    if (event.key === "ArrowLeft") goTo(session.entries.length - 1);
    return;
  }
  const isOnRadio = event.target.type === "radio";
  if (/^[1-5]$/.test(event.key)) choose(Number(event.key) - 1);
  else if (event.key === "ArrowLeft") goTo(place - 1);
  else if (event.key === "ArrowRight" && entry().id in session.ratings) goTo(place + 1);
  else if (event.key === "ArrowUp" && !isOnRadio) mark(marked - 1);
  else if (event.key === "ArrowDown" && !isOnRadio) mark(marked + 1);
  else if (event.key === "Enter" && !isOnButton) save();
  else if (!(event.key === "ArrowRight" && isOnRadio)) return;
  event.preventDefault();
}

async function start() {
  buildChoices();
  try {
    const reply = await fetch("api/session");
    session = await reply.json();
    if (!reply.ok) throw new Error(session.error);
  } catch (error) {
    complain(`The answers cannot be loaded: ${error.message}`);
    return;
  }
  try {
    at("keys").checked = localStorage.getItem("keys") !== "off";
  } catch { /* a browser that keeps nothing begins with shortcuts on */ }
  at("keys").addEventListener("change", () => {
    try {
      localStorage.setItem("keys", at("keys").checked ? "on" : "off");
    } catch { /* then the choice lasts for this page */ }
  });
  at("bar").hidden = false;
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  at("form").addEventListener("change", (event) => {
    if (event.target.type === "radio") {
      mark(NAMES.indexOf(event.target.name));
      markFirstOpen();
    }
  });
  at("back").addEventListener("click", () => goTo(place - 1));
  at("again").addEventListener("click", () => goTo(session.entries.length - 1));
  document.addEventListener("keydown", onKey);
  const open = session.entries.findIndex((one) => !(one.id in session.ratings));
  if (open < 0) showDone();
  else goTo(open);
}

start();
