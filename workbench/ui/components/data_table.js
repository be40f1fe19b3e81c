"use strict";
/* A sortable table with CSV download. Rows hold exact values; only what is shown is rounded. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.table = ({ Panel, el, number }) => {
  const SI = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

  const whole = (value) => value.toLocaleString("en");
  function si(value) {
    const [size, letter] = SI.find(([s]) => Math.abs(value) >= s) || [1, ""];
    return `${number(value / size)} ${letter}`.trim();
  }
  function percent(value) {
    return value >= 0.99995 ? "100" : number(100 * value);
  }
  const FORMATS = { text: String, int: whole, number, si, percent };
  const isNumeric = (column) => column.kind !== "text";

  /* A cell is a value, or {value, text, tip} where the text says more than the number; null is n/a. */
  const valueOf = (cell) => (cell !== null && typeof cell === "object" ? cell.value : cell) ?? null;

  function compare(column, sign) {
    return (left, right) => {
      const [a, b] = [valueOf(left.cells[column.key]), valueOf(right.cells[column.key])];
      if (a === null || b === null) return (a === null) - (b === null); // n/a last, both ways
      return sign * (isNumeric(column) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
    };
  }

  const csvField = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  function csv(columns, rows) {
    const unit = (c) => (c.kind === "percent" ? "share" : c.unit); // exact values are shares from 0 to 1
    const head = columns.map((c) => (c.unit ? `${c.text} [${unit(c)}]` : c.text));
    const lines = rows.map((row) => columns.map((c) => valueOf(row.cells[c.key]) ?? ""));
    return [head, ...lines].map((line) => line.map((v) => csvField(String(v))).join(",")).join("\r\n") + "\r\n";
  }

  class DataTable extends Panel {
    build() {
      const p = this.payload;
      const columnKeys = p.columns.map((c) => c.key).join();
      if (columnKeys !== this.columnKeys) this.sort = p.sort || null; // the reader's sorting outlives new rows
      this.columnKeys = columnKeys;
      this.tbody = el("tbody");
      this.shown = p.columns.filter((column) => !column.hidden); // hidden ones are for the file only
      this.headers = this.shown.map((column) => {
        // Where the rows have an order of their own and a column mixes units, sorting means nothing.
        const button = el(p.is_fixed ? "span" : "button", {
          type: p.is_fixed ? null : "button", class: p.is_fixed ? "wb-columnhead" : null, title: column.tip,
          onclick: p.is_fixed ? undefined : () => this.sortBy(column),
        }, column.tone ? el("i", { class: `wb-dot wb-fill-${column.tone}` }) : null,
          el("span", { text: column.text }), column.unit ? el("span", { class: "wb-unit", text: column.unit }) : null);
        return el("th", { scope: "col", class: isNumeric(column) ? "wb-number" : "", "data-key": column.key }, button);
      });
      const save = el("button", {
        type: "button", class: "wb-linkbutton wb-save", text: "CSV", title: "Download the table with exact values", onclick: () => this.download(),
      });
      this.badges.append(save);
      const scroller = el("div", { class: "wb-scroller", tabindex: "0", role: "region", "aria-label": p.title },
        el("table", { class: "wb-data" }, el("thead", {}, el("tr", {}, ...this.headers)), this.tbody));
      const top = this.scroller ? [this.scroller.scrollTop, this.scroller.scrollLeft] : [0, 0];
      this.scroller = scroller;
      this.body.replaceChildren(scroller);
      this.fill();
      [scroller.scrollTop, scroller.scrollLeft] = top;
    }

    sortBy(column) {
      const isSame = this.sort && this.sort.key === column.key;
      this.sort = { key: column.key, descending: isSame ? !this.sort.descending : false };
      this.fill();
    }

    sorted() {
      const column = this.sort && this.payload.columns.find((c) => c.key === this.sort.key);
      const rows = this.payload.rows.slice();
      return column ? rows.sort(compare(column, this.sort.descending ? -1 : 1)) : rows;
    }

    fill() {
      for (const th of this.headers) {
        const isSorted = this.sort && th.dataset.key === this.sort.key;
        if (isSorted) th.setAttribute("aria-sort", this.sort.descending ? "descending" : "ascending");
        else th.removeAttribute("aria-sort");
      }
      this.tbody.replaceChildren(...this.sorted().map((row) => {
        const cells = this.shown.map((column, i) => this.cell(row, column, i));
        return el("tr", { class: [row.tone ? `wb-row-${row.tone}` : "", row.faint ? "wb-faint" : ""].join(" ").trim(), title: row.note }, ...cells);
      }));
    }

    cell(row, column, i) {
      const cell = row.cells[column.key] ?? null;
      const value = valueOf(cell);
      const given = cell !== null && typeof cell === "object" ? cell : {};
      const text = given.text ?? (value === null ? "n/a" : FORMATS[column.kind](value));
      const classes = [isNumeric(column) ? "wb-number" : "", value === null ? "wb-muted" : ""].join(" ").trim();
      const tip = given.tip || (isNumeric(column) && value !== null ? String(value) : null);
      if (i) return el("td", { class: classes, text, title: tip });
      const name = el("span", { class: "wb-rowname", text, title: given.tip });
      return el("th", { scope: "row", class: classes }, el("div", { class: "wb-rowhead" }, this.slots(row), name));
    }

    /* Small buttons that put a row into one of the slots (scheme A, B, C). */
    slots(row) {
      const { choose } = this.payload;
      if (!choose) return null;
      return el("span", { class: "wb-slots" }, ...choose.slots.map((slot) => el("button", {
        type: "button", class: `wb-slot wb-slot-${slot}`, text: slot.toUpperCase(), "aria-pressed": String(row.slots.includes(slot)),
        title: `Use as scheme ${slot.toUpperCase()}`, "aria-label": `Use ${valueOf(row.cells[this.payload.columns[0].key])} as scheme ${slot.toUpperCase()}`,
        onclick: () => this.trigger("choose", { id: choose.id, [choose.key]: row.id, slot }),
      })));
    }

    download() {
      const { columns, csv_name: name } = this.payload;
      const url = URL.createObjectURL(new Blob([csv(columns, this.sorted())], { type: "text/csv" }));
      el("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    }
  }

  return { DataTable, csv, compare };
};
