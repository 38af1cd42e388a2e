"use strict";
// One question in one group: people's shares beside the run's. Text only ever becomes text nodes.
(() => {
  const element = document.getElementById("people-data");
  if (!element) return;
  const data = JSON.parse(element.textContent);
  const byId = (id) => document.getElementById(id);
  const place = byId("pair");
  const itemChoice = byId("pair-item");
  const groupChoice = byId("pair-group");
  const cells = new Map(data.cells.map((cell) => [`${cell[0]} ${cell[1]}`, cell]));
  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  };
  const option = (value, text) => {
    const node = make("option", "", text);
    node.value = value;
    return node;
  };
  const number = (value, digits) => value === null ? "n/a" : value.toFixed(digits).replace("-", "−");
  const range = (low, high, digits) => low === null || high === null ? "" : ` [${number(low, digits)}, ${number(high, digits)}]`;
  const groupName = ([by, group]) => by === "all" ? "everybody" : `${by}: ${group}`;

  data.items.forEach(([id, stem], index) => itemChoice.append(option(index, stem === id ? id : `${stem} (${id})`)));
  data.groups.forEach((group, index) => groupChoice.append(option(index, groupName(group))));

  const bar = (kind, [share, low, high]) => {
    const line = make("div", `pair-line ${kind}`, make("span", "pair-who", kind === "people" ? "People" : "Run"));
    const track = make("span", "pair-track");
    if (share !== null) {
      const fill = make("i", "pair-fill");
      fill.style.width = `${share}%`;
      track.append(fill);
      if (low !== null && high !== null) {
        const reach = make("i", "pair-reach");
        reach.style.left = `${low}%`;
        reach.style.width = `${Math.max(0.3, high - low)}%`;
        track.append(reach);
      }
    }
    track.setAttribute("aria-hidden", "true");
    line.append(track, make("span", "pair-number", share === null ? "too few to show" : `${number(share, 1)} %`));
    return line;
  };

  const table = (rows, caption) => {
    const head = make("tr", "");
    [["Option"], ["People, %", "low high", "people"], ["Run, %", "low high", "run"]].forEach(([text, split]) => {
      const cell = make("th", split ? "num" : "", text);
      cell.scope = "col";
      head.append(cell);
      if (split) {
        const interval = make("th", "num", "95 % interval");
        interval.scope = "col";
        interval.dataset.split = text.startsWith("People") ? "people_low people_high" : "run_low run_high";
        head.append(interval);
      }
    });
    const body = make("tbody", "");
    rows.forEach(([label, values]) => {
      const line = make("tr", "");
      const first = make("th", "", label);
      first.scope = "row";
      line.append(first);
      [0, 3].forEach((start) => {
        const [share, low, high] = values.slice(start, start + 3);
        const cell = make("td", "num", share === null ? "too few" : number(share, 1));
        cell.dataset.v = share === null ? "" : share;
        const interval = make("td", "num", range(low, high, 1).trim() || "n/a");
        interval.dataset.v = `${low ?? ""} ${high ?? ""}`;
        line.append(cell, interval);
      });
      body.append(line);
    });
    const node = make("table", "numbers", make("caption", "", caption), make("thead", "", head), body);
    const scroll = make("div", "scroll", node);
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", caption);
    scroll.tabIndex = 0;
    return scroll;
  };

  const draw = () => {
    const item = Number(itemChoice.value);
    const [id, stem, labels] = data.items[item];
    const group = data.groups[Number(groupChoice.value)];
    const cell = cells.get(`${item} ${groupChoice.value}`);
    byId("pair-back").disabled = itemChoice.selectedIndex === 0;
    byId("pair-next").disabled = itemChoice.selectedIndex === itemChoice.length - 1;
    const parts = [make("h4", "", stem)];
    if (!cell) {
      parts.push(make("p", "note", `Fewer than five people or personas of the group “${groupName(group)}” answered: not shown.`));
      place.replaceChildren(...parts);
      return;
    }
    const [, , people, answers, [w1, tv, variance], options] = cell;
    parts.push(make("p", "meta", `${id} · ${groupName(group)} · ${people.toLocaleString("en")} people, ${answers.toLocaleString("en")} synthetic answers`));
    const scores = [["W₁ alignment", w1], ["total variation", tv], ["variance ratio", variance]]
      .filter(([, value]) => value[0] !== null)
      .map(([name, value]) => `${name} ${number(value[0], 3)}${range(value[1], value[2], 3)}`);
    if (scores.length) parts.push(make("p", "", `${scores.join(" · ")}.`));
    const bars = make("div", "pairs");
    options.forEach((values, index) => bars.append(make("div", "pair-option", make("div", "pair-label", labels[index]),
      bar("people", values.slice(0, 3)), bar("run", values.slice(3)))));
    const caption = `People beside the run: ${id}, ${groupName(group)}`;
    const numbers = table(options.map((values, index) => [labels[index], values]), caption);
    parts.push(bars, make("details", "", make("summary", "", "The numbers"), numbers));
    place.replaceChildren(...parts);
    window.polypersona.offer(numbers.querySelector("table"));
  };

  const step = (by) => { itemChoice.selectedIndex += by; draw(); };
  itemChoice.addEventListener("change", draw);
  groupChoice.addEventListener("change", draw);
  byId("pair-back").addEventListener("click", () => step(-1));
  byId("pair-next").addEventListener("click", () => step(1));
  draw();
})();
