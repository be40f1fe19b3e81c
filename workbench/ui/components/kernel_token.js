"use strict";
/* From a token to its cost: a quiet table for two schemes, and its bytes as bars from zero. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.token = (kit) => {
  const { Panel, el, heading } = kit;
  const colour = (token) => `var(--wb-${token.slice(1)})`;

  class TokenCosts extends Panel {
    build() {
      const p = this.payload;
      this.body.classList.add("wb-tokbody");
      const [where, moves, computes, ...code] = p.groups;
      const text = [...new Set(p.notes || [])].join(" ");
      this.body.replaceChildren(
        el("div", { class: "wb-tokcolumn" }, this.table(where, "wb-tokwhere", true), this.bars(p.bars)),
        el("div", { class: "wb-tokcolumn" }, this.table(moves), this.table(computes)),
        ...(code.length ? [el("div", { class: "wb-tokcolumn" }, ...code.map((group) => this.table(group, "wb-tokcode")))] : []),
        el("p", { class: "wb-note", text, title: text }),
      );
      this.body.dataset.columns = String(code.length ? 3 : 2);
    }

    /* Columns A and B, and how many times as much B is. */
    table(group, kind, hasButtons) {
      const { columns } = this.payload;
      const isPair = columns.length > 1 && group.rows.some((row) => row.ratio);
      const heads = columns.map((c) => el("th", { scope: "col", class: "wb-number" }, el("span", { class: `wb-columnhead wb-tone-${c.slot}`, text: c.short, title: c.text })));
      const rows = group.rows.map((row) => el("tr", {},
        el("th", { scope: "row", title: row.tip || row.name }, el("span", { class: "wb-rowname", text: row.name })),
        ...row.cells.map((cell) => el("td", { class: "wb-number", text: cell.text ?? cell, title: cell.tip ?? cell })),
        isPair ? el("td", { class: "wb-number wb-muted", text: row.ratio }) : null));
      if (hasButtons) {
        rows.push(el("tr", { class: "wb-tokbuttons" }, el("th", { scope: "row" }), ...columns.map((c) => el("td", { class: "wb-number" }, el("button", {
          type: "button", class: "wb-button", text: "Show the code", title: `${c.config} for ${c.target}`, "aria-label": `Show the code of ${c.text}`,
          onclick: () => this.trigger("choose", { do: "kernel", a: c.config, target: c.target }),
        })))));
      }
      return el("table", { class: `wb-data wb-toktable ${kind || ""}`.trim() },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "wb-columnhead", text: group.title, title: group.tip || group.title })), ...heads, isPair ? el("th", { scope: "col", class: "wb-number" }, el("span", { class: "wb-columnhead", text: "B : A" })) : null)),
        el("tbody", {}, ...rows));
    }

    bars(spec) {
      const rows = spec.rows.map((row) => {
        const parts = row.parts.map((part) => {
          const piece = el("i", { title: `${part.text}: ${part.bytes.toLocaleString("en")} B` });
          piece.style.width = `${(100 * part.bytes) / spec.longest}%`;
          piece.style.background = colour(part.colour);
          return piece;
        });
        const least = el("b", { class: "wb-tokleast", title: `at least ${row.least_text}, model` });
        least.style.left = `${(100 * row.least) / spec.longest}%`;
        const words = row.parts.map((part) => `${part.text} ${part.bytes} B`).join(", ");
        return el("div", { class: "wb-tokbar" },
          el("span", { class: `wb-tone-${row.slot} wb-tokname`, text: row.short, title: row.text }),
          el("div", { class: "wb-toktrack", role: "img", "aria-label": words }, el("div", { class: "wb-stack" }, ...parts), least),
          el("span", { class: "wb-number", text: row.total_text }));
      });
      return el("div", { class: "wb-tokbars" }, heading({ heading: spec.heading }), ...rows, el("div", { class: "wb-toklegend" }, ...kit.legend(spec.legend)));
    }
  }

  return { kerntoken: TokenCosts };
};
