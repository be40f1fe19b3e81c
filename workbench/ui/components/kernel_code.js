"use strict";
/* The kernel inspector: what was compiled, its resources, two kernels beside each other, and their listings. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.inspector = (kit) => {
  const { Panel, Panes, el, number } = kit;
  const NAME = 0, KERNEL = 1, LAYOUT = 2, DTYPE = 3, TILE = 4, ORIGIN = 5, HELD = 6; // of a choice
  const FIELDS = [["kernel", KERNEL], ["layout", LAYOUT], ["type", DTYPE], ["tile", TILE]];
  const SLOTS = ["a", "b"];
  const whole = (n) => n.toLocaleString("en");
  const bytes = (n) => (n >= 1024 ? `${number(n / 1024)} KiB` : `${whole(n)} B`);

  function segmented(label, items, current, onChoose) {
    const node = el("div", { class: "wb-segmented", role: "radiogroup", "aria-label": label });
    node.append(...items.map(([key, text, tip]) => el("button", {
      type: "button", role: "radio", "aria-checked": String(key === current), text, title: tip,
      onclick: () => {
        [...node.children].forEach((child, i) => child.setAttribute("aria-checked", String(items[i][0] === key)));
        onChoose(key);
      },
    })));
    return node;
  }

  /* The choice most like `wish` whose `field` is `value`: shipped tiles first where nothing else decides. */
  function nearest(choices, wish, field, value) {
    const score = (c) => 8 * (c[LAYOUT] === wish[LAYOUT]) + 4 * (c[DTYPE] === wish[DTYPE]) + 2 * (c[TILE] === wish[TILE]) + (c[ORIGIN] === 0);
    const fitting = choices.filter((c) => c[field] === value && (field === KERNEL || c[KERNEL] === wish[KERNEL]));
    return fitting.reduce((best, c) => (best && score(best) >= score(c) ? best : c), null);
  }

  class KernelInspector extends Panel {
    build() {
      const p = this.payload;
      this.body.classList.add("wb-kernbody");
      this.frame();
      const parts = p.obstacle ? [this.obstacle(p.obstacle), this.trialBox] : [this.picks, this.table, this.middle, this.area, this.trialBox, this.note];
      if (parts.length !== this.body.children.length || parts.some((node, i) => this.body.children[i] !== node)) this.body.replaceChildren(...parts);
      this.showTrials(p);
      if (p.obstacle) return;
      this.showPicks(p);
      this.showTable(p);
      this.showMiddle(p);
      this.showListings(p);
      this.note.textContent = this.note.title = (p.notes || []).join(" ");
    }

    /* Made once: a list that leaves the page loses its scroll position. */
    frame() {
      if (this.table) return;
      this.picks = el("div", { class: "wb-kernpicks" });
      this.table = el("div", { class: "wb-scroller wb-kerntable", tabindex: "0", role: "region", "aria-label": "Resources" });
      this.middle = el("div", { class: "wb-kernmiddle" });
      this.panes = new Panes();
      this.modes = el("div", { class: "wb-kernmodes" });
      this.noListing = el("div", { class: "wb-codemessage" });
      this.area = el("div", { class: "wb-kernarea" });
      this.trialBox = el("div", { class: "wb-kerntrials" });
      this.note = el("p", { class: "wb-note" });
      this.mixKey = "whole";
    }

    obstacle({ title, text }) {
      const parts = text.split("`").map((part, i) => (i % 2 ? el("code", { class: "wb-command", text: part }) : part));
      return el("div", { class: "wb-empty" }, el("div", {}, el("h3", { text: title }), el("p", {}, ...parts)));
    }

    /* What is compared */

    choices(slot) {
      const { choices, choices_b: other } = this.payload;
      return slot === "b" && other.length ? other : choices;
    }

    chosen(slot) {
      const row = this.row(slot) || this.row("a");
      const found = this.choices(slot).find((c) => c[NAME] === row.config);
      return found || [row.config, row.config.split("-")[0], "", "", row.tile, 0, ""];
    }

    row(slot) { return this.payload.rows.find((row) => row.slot === slot); }

    ask(changes) {
      const [a, b] = SLOTS.map((slot) => this.row(slot));
      const now = { a: a.config, target: a.target, b: b ? b.config : "", target_b: b ? b.target : "", ...changes };
      if (!now.b || now.target_b === now.target) now.target_b = "";
      this.trigger("choose", { do: "kernel", ...now });
    }

    asked(slot, config, target) {
      const a = this.row("a");
      return slot === "a" ? { a: config, target } : { b: config, target_b: target || a.target };
    }

    /* The same kernel for another target goes by the name that the server found for it. */
    alike(config, target) {
      if (config !== this.row("a").config) return config;
      const there = this.payload.rows.find((row) => row.target === target && row.slot === "");
      return there ? there.config : config;
    }

    showPicks(p) {
      const isAdding = !this.row("b") && this.isAdding;
      const first = this.pickLine("a");
      const lines = [first];
      if (this.row("b") || isAdding) lines.push(this.pickLine("b"));
      else first.append(el("button", { type: "button", class: "wb-linkbutton wb-kernadd", text: "Compare with…", title: "Choose a second kernel, tile or target as B", onclick: () => { this.isAdding = true; this.showPicks(p); } }));
      this.picks.replaceChildren(...lines);
    }

    pickLine(slot) {
      const row = this.row(slot);
      const target = (row || this.row("a")).target;
      const wish = this.chosen(slot);
      const choices = this.choices(slot);
      const name = slot.toUpperCase();
      const selects = FIELDS.map(([text, field]) => this.picker(`${text} of ${name}`, text, this.options(choices, wish, field), wish[field], (value) => {
        const found = field === TILE ? choices.find((c) => c[NAME] === value) : nearest(choices, wish, field, value);
        if (found) this.ask(this.asked(slot, found[NAME], target));
      }, field === TILE ? wish[NAME] : undefined));
      const targets = this.payload.targets.map((t) => el("option", { value: t.name, text: `${t.name}${t.product ? `, ${t.product}` : ""}${t.why ? " (not here)" : ""}`, title: t.why || null, disabled: !!t.why }));
      selects.push(this.picker(`target of ${name}`, "target", targets, target, (value) => this.ask(this.asked(slot, this.alike(wish[NAME], value), value))));
      const held = wish[HELD] ? el("span", { class: "wb-muted wb-kernheld", text: wish[HELD] }) : null;
      const end = slot === "a" ? null : el("button", { type: "button", class: "wb-linkbutton", text: "none", title: "Compare with nothing", onclick: () => { this.isAdding = false; if (row) this.ask({ b: "" }); else this.showPicks(this.payload); } });
      const hint = slot === "b" && !row ? el("span", { class: "wb-muted", text: "change one to compare" }) : held;
      return el("div", { class: "wb-kernpick" }, el("b", { class: `wb-kernslot wb-fill-${slot}`, text: name }), ...selects, hint, end);
    }

    options(choices, wish, field) {
      if (field === TILE) {
        const alike = choices.filter((c) => c[KERNEL] === wish[KERNEL] && c[LAYOUT] === wish[LAYOUT] && c[DTYPE] === wish[DTYPE]);
        const groups = this.payload.origins.map((origin, i) => {
          const inside = alike.filter((c) => c[ORIGIN] === i).map((c) => el("option", { value: c[NAME], text: c[TILE], title: c[HELD] || null }));
          return inside.length ? el("optgroup", { label: origin.text }, ...inside) : null;
        }).filter(Boolean);
        return alike.some((c) => c[NAME] === wish[NAME]) ? groups : [el("option", { value: wish[NAME], text: wish[TILE] }), ...groups];
      }
      const kernel = field === KERNEL ? choices : choices.filter((c) => c[KERNEL] === wish[KERNEL]);
      const values = [...new Set([wish[field], ...kernel.map((c) => c[field])])];
      if (field === KERNEL) values.sort((x, y) => choices.findIndex((c) => c[KERNEL] === x) - choices.findIndex((c) => c[KERNEL] === y));
      return values.map((value) => el("option", { value, text: value || "one" }));
    }

    picker(label, text, options, value, onChoose, key = value) {
      const select = el("select", { class: "wb-select", "aria-label": label, onchange: () => onChoose(select.value) }, ...options);
      select.value = key;
      if (select.querySelectorAll("option").length < 2) select.disabled = true;
      return el("label", { class: `wb-kernfield wb-kernfield-${text}` }, el("span", { text }), select);
    }

    /* Resources */

    showTable(p) {
      const heads = [["kernel"], ["registers", 1, "for each thread"], ["spills", 1, "bytes stored and loaded because registers ran out"], ["shared", 1, "memory for each block"],
        ["occupancy", 1, "warps that fit on a multiprocessor, of those it can hold"], ["limited by"], ["instructions", 1], ["in loops", 1], ["exp2 in loops", 1, "exponential instructions inside loops"],
        ["compiled in", 1, "on this machine, of all stages"], ["baseline", 0, "beside the numbers stored in kernels/compiled_baseline.json"]];
      const head = el("tr", {}, ...heads.map(([text, isNumber, tip]) => el("th", { scope: "col", class: isNumber ? "wb-number" : "" }, el("span", { class: "wb-columnhead", text, title: tip }))));
      const rows = p.rows.map((row) => this.resourceRow(row, heads.length));
      const waiting = p.waiting.map((w) => el("tr", { class: "wb-faint" }, el("th", { scope: "row" }, el("span", { class: "wb-kernname" }, el("b", { text: w.target }))), el("td", { colspan: heads.length - 1, class: "wb-muted" }, el("i", { class: "wb-spin" }), "compiling")));
      const left = this.table.scrollLeft;
      this.table.replaceChildren(el("table", { class: "wb-data wb-grid" }, el("thead", {}, head), el("tbody", {}, ...rows, ...waiting)));
      this.table.scrollLeft = left;
    }

    resourceRow(row, n) {
      const slots = el("span", { class: "wb-slots" }, ...SLOTS.map((slot) => el("button", {
        type: "button", class: `wb-slot wb-slot-${slot}`, text: slot.toUpperCase(), "aria-pressed": String(row.slot === slot), "aria-label": `Use ${row.config} on ${row.target} as ${slot.toUpperCase()}`, title: `Use as ${slot.toUpperCase()}`,
        onclick: () => { if (row.slot !== slot) this.ask(this.asked(slot, row.config, row.target)); },
      })));
      const name = el("span", { class: "wb-kernname", title: row.config }, el("b", { text: row.target }), el("span", { class: "wb-muted", text: ` ${row.product}` }), row.apart ? el("span", { class: "wb-kernconfig", text: row.apart }) : null);
      const node = el("tr", { class: row.slot ? `wb-row-${row.slot}` : "", "data-target": row.target, "data-slot": row.slot }, el("th", { scope: "row" }, el("div", { class: "wb-rowhead" }, slots, name)));
      if (row.status) node.append(this.words(row, n - 1));
      else node.append(...this.numbers(row));
      return node;
    }

    words(row, n) {
      const [first] = row.status.trim().split("\n");
      const title = { compiler: "The compiler refused", timeout: "Not compiled in time", triton: "No compiler here", backend: "No compiler for this GPU", input: "Not offered" }[row.kind] || "Not compiled";
      const isLong = row.status.length > 90 || row.status.includes("\n");
      return el("td", { colspan: n, class: "wb-kernfail" }, el("b", { text: title }), isLong
        ? el("details", { open: !!row.slot }, el("summary", { text: first.slice(0, 110) }), el("pre", { tabindex: "0", text: row.status })) : el("span", { text: row.status }));
    }

    numbers(row) {
      const cell = (text, tip, more = "") => el("td", { class: `wb-number ${more}`.trim(), text, title: tip });
      const bar = (text, share, tip, more = "") => {
        const node = cell(text, tip, `wb-cellbar ${more}`);
        node.style.setProperty("--wb-share", `${100 * Math.min(1, share)}%`);
        return node;
      };
      const scalars = row.scalars ? `, ${row.scalars} scalar registers a wave` : "";
      return [
        bar(`${whole(row.registers)} / ${row.most_registers}`, row.registers / row.most_registers, `${row.registers} of ${row.most_registers} that a thread can have${scalars}`),
        cell(row.spills ? bytes(row.spills) : "0", row.stack ? `${whole(row.stack)} B of stack a thread` : "no stack", row.spills ? "wb-kernbad" : ""),
        cell(bytes(row.shared), `${whole(row.shared)} B for each block`),
        bar(row.occupancy_text, row.occupancy, `${row.resident} at a time on one multiprocessor`, row.occupancy ? "" : "wb-kernbad"),
        el("td", { class: "wb-longname wb-kernlimit", text: row.limiter, title: row.limiter }),
        cell(whole(row.instructions), `binary of ${bytes(row.binary)}`), cell(whole(row.in_loops)), cell(whole(row.exp2)),
        cell(`${whole(Math.round(row.compile_ms))} ms`, row.cached ? "compiled earlier, kept in the cache" : "compiled for this view"),
        el("td", { class: { ok: "wb-tone-ok", bad: "wb-kernbad" }[row.verdict.tone] || "wb-muted", text: row.verdict.text, title: row.verdict.tip }),
      ];
    }

    /* A beside B, instruction mix, compile time */

    showMiddle(p) {
      const parts = [];
      if (p.difference.length) parts.push(this.differenceBox(p.difference));
      if (p.mix.length) parts.push((this.mixBox = el("div", { class: "wb-kernmix" })));
      if (p.compile_stages.bars.length) parts.push(this.stageBox(p));
      this.middle.dataset.n = parts.length;
      this.middle.replaceChildren(...parts);
      if (p.mix.length) this.showMix(p);
    }

    differenceBox(rows) {
      const lines = rows.map((row) => el("tr", {}, el("th", { scope: "row", text: row.text }), el("td", { class: "wb-number", text: `${row.a} ${row.unit}`.trim() }), el("td", { class: "wb-number", text: `${row.b} ${row.unit}`.trim() }),
        el("td", { class: `wb-number wb-kernchange ${{ ok: "wb-tone-ok", bad: "wb-kernbad" }[row.tone] || ""}`.trim(), text: row.change })));
      const heads = [["", ""], ["A", "a"], ["B", "b"], ["change", ""]].map(([text, tone], i) => el("th", { scope: "col", class: i ? "wb-number" : "" }, tone ? el("i", { class: `wb-dot wb-fill-${tone}` }) : null, text));
      return el("div", { class: "wb-kerndiff" }, el("div", { class: "wb-kernhead" }, el("b", { text: "Difference" })), el("table", { class: "wb-table" }, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...lines)));
    }

    showMix(p) {
      const key = this.mixKey;
      const rows = p.mix.filter((row) => row[key].some(Boolean));
      const most = Math.max(1, ...rows.flatMap((row) => row[key].map((v) => v || 0)));
      const total = rows.length ? rows[0][key].map((_, i) => rows.reduce((sum, row) => sum + (row[key][i] || 0), 0)) : [];
      const bar = (value, i) => {
        const fill = el("i", { class: `wb-fill-${SLOTS[i]}` });
        fill.style.width = `${(100 * (value || 0)) / most}%`;
        const share = value && total[i] ? `, ${number((100 * value) / total[i])} % of ${SLOTS[i].toUpperCase()}` : "";
        return el("div", { class: "wb-kernbar", title: value === null ? "not compiled" : `${whole(value)} instructions${share}` }, el("span", { class: "wb-kerntrack" }, fill), el("span", { class: "wb-number", text: value === null ? "–" : whole(value) }));
      };
      const lines = rows.map((row) => el("div", { class: "wb-kernbarrow" }, el("span", { class: "wb-kindname" }, el("i", { "data-kind": row.key }), row.text), el("div", {}, ...row[key].map(bar))));
      const choice = segmented("Instructions", [["whole", "whole", "Every instruction of the kernel"], ["loops", "in loops", "Instructions inside any loop"]], key, (wanted) => { this.mixKey = wanted; this.showMix(p); });
      const none = lines.length ? lines : [el("p", { class: "wb-muted", text: key === "loops" ? "No loop in this kernel." : "No instructions." })];
      const isFocused = this.mixBox.contains(document.activeElement);
      this.mixBox.replaceChildren(el("div", { class: "wb-kernhead" }, el("b", { text: "Instruction mix" }), choice), ...none);
      if (isFocused) choice.querySelector("[aria-checked=true]").focus();
    }

    stageBox(p) {
      const { bars, legend } = p.compile_stages;
      const most = Math.max(1, ...bars.map((bar) => bar.parts.reduce((sum, part) => sum + part.ms, 0)));
      const lines = bars.map((bar, n) => {
        const sum = bar.parts.reduce((total, part) => total + part.ms, 0);
        const pieces = bar.parts.map((part) => {
          const wide = (100 * part.ms) / most;
          const node = el("i", { "data-place": part.place, title: `${part.text}: ${number(part.ms)} ms` }, wide > 13 ? String(Math.round(part.ms)) : "");
          node.style.width = `${wide}%`;
          return node;
        });
        const row = p.rows.filter((r) => !r.status)[n];
        const words = bar.parts.map((part) => `${part.text} ${number(part.ms)} ms`).join(", ");
        return el("div", { class: "wb-kernstages" }, el("span", { class: row && row.slot ? `wb-tone-${row.slot}` : "", text: row && row.slot ? `${row.slot.toUpperCase()} ${bar.target}` : bar.target, title: bar.config }),
          el("div", { class: "wb-kernstack", role: "img", "aria-label": words }, ...pieces), el("span", { class: "wb-number", text: `${whole(Math.round(sum))} ms` }));
      });
      const keys = legend.map((item) => el("span", { class: "wb-kindkey" }, el("i", { "data-place": item.place }), item.text));
      return el("div", { class: "wb-kerncompile" }, el("div", { class: "wb-kernhead" }, el("b", { text: "Compile time by stage" }), el("span", { class: "wb-muted", text: "ms, from zero" })), ...lines, el("div", { class: "wb-codelegend" }, ...keys));
    }

    /* Listings */

    showListings(p) {
      const subjects = SLOTS.map((slot) => this.row(slot)).filter((row) => row && row.key && row.stages.length);
      if (!subjects.length) {
        const row = this.row("a");
        this.noListing.replaceChildren(el("b", { text: "No listings" }), el("p", { text: row.kind === "compiler" ? "The kernel did not compile; the compiler's words are in the table. Choose another tile." : "The kernel is not compiled; the table says why." }));
        this.area.replaceChildren(this.noListing);
        return;
      }
      const wanted = [this.modes, this.panes.node];
      if (wanted.some((node, i) => this.area.children[i] !== node)) this.area.replaceChildren(...wanted);
      this.panes.update(p.listings, subjects, p.classes);
      const items = [["listings", "side by side"], ["difference", "difference of A and B", "The same stage of both, line by line"]];
      this.modes.replaceChildren(...[el("b", { text: "Listings" }), subjects.length > 1 ? segmented("Listings", items, this.panes.mode, (mode) => this.panes.setMode(mode)) : null].filter(Boolean));
    }

    /* Tiles that a GPU timed */

    showTrials(p) {
      const head = el("div", { class: "wb-kernhead" }, el("b", { text: "Tiles measured on a GPU" }));
      if (!p.trials.length) {
        const words = p.trials_note.split("`").map((part, i) => (i % 2 ? el("code", { text: part }) : part));
        this.trialBox.replaceChildren(head, el("p", { class: "wb-muted" }, ...words));
        return;
      }
      const most = Math.max(...p.trials.map((t) => t.us || 0), 1e-9);
      const heads = [["tile"], ["sizes"], ["µs", 1], [""], ["registers", 1], ["spills", 1], ["device"], ["when"]];
      const rows = p.trials.map((t) => {
        const time = el("td", { class: `wb-number${t.us === null ? " wb-muted" : " wb-cellbar"}`, text: t.us_text, title: t.us === null ? t.status : `${t.us} µs` });
        if (t.us !== null) time.style.setProperty("--wb-share", `${(100 * t.us) / most}%`);
        const known = t.of ? `compiled for ${t.of}` : "not compiled in this view";
        return el("tr", { class: t.chosen ? "wb-kernchosen" : "" }, el("th", { scope: "row", text: t.tile }), el("td", { text: t.row }), time, el("td", { class: t.chosen ? "wb-tone-ok" : "wb-muted", text: t.chosen ? "✓ chosen" : t.status, title: t.status || null }),
          el("td", { class: "wb-number", text: t.registers === null ? "–" : whole(t.registers), title: known }), el("td", { class: `wb-number${t.spills ? " wb-kernbad" : ""}`, text: t.spills === null ? "–" : whole(t.spills), title: known }), el("td", { text: t.device }), el("td", { text: t.when }));
      });
      this.trialBox.replaceChildren(head, el("div", { class: "wb-scroller", tabindex: "0", role: "region", "aria-label": "Tiles measured on a GPU" },
        el("table", { class: "wb-data wb-grid" }, el("thead", {}, el("tr", {}, ...heads.map(([text, isNumber]) => el("th", { scope: "col", class: isNumber ? "wb-number" : "" }, el("span", { class: "wb-columnhead", text }))))), el("tbody", {}, ...rows))));
    }

    themeChanged() { if (this.panes) this.panes.themeChanged(); }

    dispose() {
      if (this.panes) this.panes.dispose();
      super.dispose();
    }
  }

  return { KernelInspector };
};
