"use strict";
// Browsing of the embedded answers. Text from the run only ever becomes text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 5;
  const FIRST_ANSWERS = 6;
  const byId = (id) => document.getElementById(id);
  const words = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");
  const plain = (text) => text.toLocaleLowerCase();
  document.querySelectorAll("[data-needs-script]").forEach((node) => { node.hidden = false; });

  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  };

  const marked = (text, terms) => {
    const fragment = document.createDocumentFragment();
    const low = plain(text);
    // Lower case may change a text's length in a few scripts; then nothing is marked.
    const wanted = low.length === text.length ? terms : [];
    let place = 0;
    while (place < text.length) {
      let start = -1;
      let length = 0;
      for (const term of wanted) {
        const found = low.indexOf(term, place);
        if (found >= 0 && (start < 0 || found < start)) { start = found; length = term.length; }
      }
      if (start < 0) break;
      fragment.append(text.slice(place, start), make("mark", "", text.slice(start, start + length)));
      place = start + length;
    }
    fragment.append(text.slice(place));
    return fragment;
  };

  // One closed question at a time.
  const choice = byId("item-choice");
  if (choice) {
    const panels = [...document.querySelectorAll("[data-item]")];
    const order = [...choice.options].map((option) => option.value);
    const show = () => {
      panels.forEach((panel) => { panel.hidden = panel.dataset.item !== choice.value; });
      byId("item-back").disabled = choice.selectedIndex === 0;
      byId("item-next").disabled = choice.selectedIndex === order.length - 1;
    };
    const step = (by) => { choice.selectedIndex += by; show(); };
    choice.addEventListener("change", show);
    byId("item-back").addEventListener("click", () => step(-1));
    byId("item-next").addEventListener("click", () => step(1));
    show();
  }

  // Respondents and answers.
  const personas = data.personas.map((persona) => ({
    ...persona,
    searchable: plain([persona.id, persona.text, ...persona.card.map((line) => line.join(": "))].join("\n")),
  }));
  const items = data.items.map(([id, stem, domain, type]) => ({ id, stem, domain, type, searchable: plain(`${id}\n${stem}`) }));
  const rows = data.rows.map(([persona, item, text, disposition, wave, draw, reference]) => ({
    persona, item, text, disposition, wave, draw, reference, searchable: plain(`${text}\n${reference || ""}`),
  }));
  const isRepeated = rows.some((row) => row.wave !== 1 || row.draw !== 1);

  const fill = (select, values) => {
    [...new Set(values)].sort().forEach((value) => {
      const option = make("option", "", words(value));
      option.value = value;
      select.append(option);
    });
  };
  const search = byId("search");
  const filters = { domain: byId("filter-domain"), type: byId("filter-type"), disposition: byId("filter-disposition") };
  fill(filters.domain, items.map((item) => item.domain));
  fill(filters.type, items.map((item) => item.type));
  fill(filters.disposition, rows.map((row) => row.disposition));

  // Respondents by an attribute of their card, where it has few enough values to choose from.
  const MOST_VALUES = 60;
  const attribute = byId("filter-attribute");
  const attributeValue = byId("filter-value");
  const valuesOf = new Map();
  personas.forEach((persona) => persona.card.forEach(([name, value]) => {
    if (!valuesOf.has(name)) valuesOf.set(name, new Set());
    valuesOf.get(name).add(value);
  }));
  [...valuesOf].filter(([, values]) => values.size > 1 && values.size <= MOST_VALUES).forEach(([name]) => {
    const option = make("option", "", name);
    option.value = name;
    attribute.append(option);
  });
  const showValues = () => {
    const values = attribute.value ? [...valuesOf.get(attribute.value)] : [];
    values.sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
    attributeValue.replaceChildren(make("option", "", "all"), ...values.map((value) => make("option", "", value)));
    attributeValue.options[0].value = "";
    attributeValue.disabled = !values.length;
  };
  const isWanted = (persona) => !attributeValue.value
    || persona.card.some(([name, value]) => name === attribute.value && value === attributeValue.value);

  let page = 0;
  const terms = () => plain(search.value).split(/\s+/).filter(Boolean);

  const matching = (wanted) => {
    const groups = new Map();
    for (const row of rows) {
      const item = items[row.item];
      if (filters.domain.value && item.domain !== filters.domain.value) continue;
      if (filters.type.value && item.type !== filters.type.value) continue;
      if (filters.disposition.value && row.disposition !== filters.disposition.value) continue;
      const persona = personas[row.persona];
      if (!isWanted(persona)) continue;
      if (!wanted.every((term) => row.searchable.includes(term) || item.searchable.includes(term) || persona.searchable.includes(term))) continue;
      if (!groups.has(row.persona)) groups.set(row.persona, []);
      groups.get(row.persona).push(row);
    }
    return [...groups];
  };

  const answerNode = (row, wanted) => {
    const item = items[row.item];
    const node = make("div", "answer",
      make("p", "question", marked(item.stem, wanted)),
      make("p", "reply", row.text ? marked(row.text, wanted) : make("i", "", "no text")));
    const meta = make("p", "meta", `${words(item.domain)} · ${item.type} · ${item.id}`);
    if (isRepeated) meta.append(` · wave ${row.wave}, draw ${row.draw}`);
    if (row.disposition !== "complete") meta.append(" · ", make("span", "outcome", words(row.disposition)));
    node.append(meta);
    if (row.reference) {
      node.append(make("p", "reference", make("b", "", "Reference: "), marked(row.reference, wanted)));
    }
    return node;
  };

  const respondentNode = ([index, answers], wanted) => {
    const persona = personas[index];
    const node = make("article", "card respondent", make("h3", "", marked(persona.brief || persona.id, wanted)));
    node.append(make("p", "meta", "Synthetic respondent ", marked(persona.id, wanted)));
    if (persona.card.length || persona.text) {
      const list = make("dl", "facts");
      persona.card.forEach(([name, value]) => list.append(make("div", "", make("dt", "", name), make("dd", "", marked(value, wanted)))));
      if (persona.text) list.append(make("div", "", make("dt", "", "Text"), make("dd", "", marked(persona.text, wanted))));
      node.append(make("details", "", make("summary", "", "The respondent's card"), list));
    }
    answers.slice(0, FIRST_ANSWERS).forEach((row) => node.append(answerNode(row, wanted)));
    if (answers.length > FIRST_ANSWERS) {
      const more = make("details", "", make("summary", "", `${answers.length - FIRST_ANSWERS} more answers of this respondent`));
      more.addEventListener("toggle", () => {
        if (more.childElementCount === 1) answers.slice(FIRST_ANSWERS).forEach((row) => more.append(answerNode(row, wanted)));
      });
      node.append(more);
    }
    return node;
  };

  const draw = () => {
    const wanted = terms();
    const groups = matching(wanted);
    const pages = Math.max(1, Math.ceil(groups.length / PAGE));
    page = Math.min(page, pages - 1);
    const count = groups.reduce((sum, group) => sum + group[1].length, 0);
    byId("found").textContent = count
      ? `${count.toLocaleString("en")} synthetic answers of ${groups.length.toLocaleString("en")} respondents`
      : "No answer matches. Shorten the search or widen the filters.";
    byId("respondents").replaceChildren(...groups.slice(page * PAGE, (page + 1) * PAGE).map((group) => respondentNode(group, wanted)));
    byId("page-place").textContent = `Page ${page + 1} of ${pages}`;
    byId("page-back").disabled = page === 0;
    byId("page-next").disabled = page >= pages - 1;
  };

  const restart = () => { page = 0; draw(); };
  let timer = 0;
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(restart, 120); });
  search.form.addEventListener("submit", (event) => { event.preventDefault(); restart(); });
  Object.values(filters).forEach((filter) => filter.addEventListener("change", restart));
  attribute.addEventListener("change", () => { showValues(); restart(); });
  attributeValue.addEventListener("change", restart);
  search.form.addEventListener("reset", () => setTimeout(() => { showValues(); restart(); }));
  byId("answers-csv").addEventListener("click", () => {
    const head = ["persona_id", "item_id", "question", "domain", "type", "wave", "draw", "outcome", "answer", "reference"];
    const lines = matching(terms()).flatMap(([index, answers]) => answers.map((row) => {
      const item = items[row.item];
      return [personas[index].id, item.id, item.stem, item.domain, item.type, row.wave, row.draw, row.disposition, row.text,
        row.reference || ""];
    }));
    window.polypersona.save("answers", [head, ...lines], "synthetic");
  });
  const turn = (by) => { page += by; draw(); byId("answers").scrollIntoView(); };
  byId("page-back").addEventListener("click", () => turn(-1));
  byId("page-next").addEventListener("click", () => turn(1));
  draw();
})();
