"use strict";
// Every table can be saved as CSV, from a file:// page too. Numbers go out unrounded; what came from a run is text.
(() => {
  const title = document.querySelector("h1").textContent.trim();
  const plain = (node) => {
    const copy = node.cloneNode(true);
    copy.querySelectorAll("button, [aria-hidden=true]").forEach((part) => part.remove());
    return copy.textContent.replace(/\s+/g, " ").trim();
  };
  const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
  const isNumber = (text) => /^[-−]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e[-+]?\d+)?$/i.test(text);

  // A spreadsheet runs text that begins like a formula; a leading apostrophe keeps it text.
  const field = (text) => {
    const value = isNumber(text) ? text.replaceAll(",", "").replace("−", "-") : /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  };
  const isMissing = (text) => text === "n/a" || text === "—" ? "" : text;

  const rowsOf = (table) => {
    const heads = [...(table.tHead ? table.tHead.rows[table.tHead.rows.length - 1].cells : [])];
    const splits = heads.map((head) => head.dataset.split ? head.dataset.split.split(" ") : null);
    const rows = [heads.flatMap((head, place) => splits[place] || [head.dataset.name || plain(head)])];
    for (const body of table.tBodies) {
      for (const row of body.rows) {
        if (row.cells.length === 1 && row.cells[0].colSpan > 1) continue;
        const values = [...row.cells].flatMap((cell, place) => {
          if (splits[place]) return (cell.dataset.v || " ").split(" ");
          return [cell.dataset.v !== undefined ? cell.dataset.v : isMissing(plain(cell))];
        });
        values.source = body.dataset.source;
        rows.push(values);
      }
    }
    return rows;
  };

  const save = (name, rows, source) => {
    const lines = rows.map((row, place) => [...row, place ? row.source || source : "data"].map((value) => field(String(value))).join(","));
    const address = URL.createObjectURL(new Blob(["\ufeff", lines.join("\r\n"), "\r\n"], { type: "text/csv" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = `synthetic-${slug(title)}-${slug(name)}.csv`;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };

  const button = (text, label, act) => {
    const node = document.createElement("button");
    node.type = "button";
    node.className = "csv";
    node.textContent = text;
    if (label) node.setAttribute("aria-label", label);
    node.addEventListener("click", act);
    return node;
  };

  const sourceOf = (node) => node.closest("[data-source]")?.dataset.source || "synthetic";
  const offer = (table) => {
    const name = plain(table.caption);
    const place = table.closest(".scroll") || table;
    const line = document.createElement("p");
    line.className = "export";
    line.append(button("Save as CSV", `Save the table “${name}” as CSV`, () => save(name, rowsOf(table), sourceOf(table))));
    place.after(line);
  };
  document.querySelectorAll("table").forEach((table) => { if (!table.closest("[data-item]")) offer(table); });

  // The closed questions are one table in the file: an option a row.
  const panels = [...document.querySelectorAll("[data-item]")];
  const whole = document.getElementById("items-csv");
  if (whole) {
    whole.addEventListener("click", () => {
      const all = panels.flatMap((panel) => {
        const [head, ...rows] = rowsOf(panel.querySelector("table"));
        return rows.map((row) => new Map([["item", panel.dataset.id], ["question", plain(panel.querySelector("h3"))],
          ...head.map((name, place) => [name, row[place]])]));
      });
      const heads = [...new Set(all.flatMap((row) => [...row.keys()]))];
      save("answers to closed questions", [heads, ...all.map((row) => heads.map((name) => row.get(name) ?? ""))], sourceOf(whole));
    });
  }
  window.polypersona = { save, offer };
})();
