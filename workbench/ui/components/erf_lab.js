"use strict";
/* The ERF tab: fields beside each other with one difference to choose, and the paths through the blocks. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.erf = ({ Panel, MapView, el, scale, legend }) => {
  const SIDE_MAPS = 3; // with more maps than this, or with wide ones, the text goes below them
  const SIDE_ASPECT = 1.1;

  function notes(payload) {
    const text = [...new Set(payload.notes || [])].join(" ");
    return text ? el("p", { class: "wb-note", text, title: text }) : null;
  }

  /* Lines as they look on the maps: on a chip of the maps' darkest colour. */
  function lines(items) {
    return el("div", { class: "wb-lines" }, ...items.map((item) => el("span", { class: "wb-line", title: item.tip || item.text },
      el("i", { class: `wb-linechip wb-line-${item.line}`, "aria-hidden": "true" }), el("span", { text: item.text }))));
  }

  /* The scale of a difference: whose colour is which end. */
  function ends(spec) {
    const node = scale({ ...spec, label: "" });
    node.title = spec.tip;
    node.classList.add("wb-differencescale");
    node.append(el("div", { class: "wb-ends" }, ...spec.ends.map((end) => el("span", { class: `wb-tone-${end.tone}`, text: end.text }))));
    return node;
  }

  /* Two to four fields; the last map is the difference of the first to the rival that was chosen. */
  class ErfLab extends Panel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.rival = null; // key of the rival, kept while it is shown
      this.body.classList.add("wb-erfbody");
    }

    build() {
      const p = this.payload;
      const [h, w] = p.input;
      if (!p.differences.some((d) => d.key === this.rival)) this.rival = p.differences.length ? p.differences[0].key : null;
      const views = p.maps.length + (this.rival ? 1 : 0);
      this.mapRow.style.setProperty("--wb-columns", views);
      this.mapRow.style.setProperty("--wb-aspect", w / h);
      const isBeside = views <= SIDE_MAPS && w / h <= SIDE_ASPECT;
      this.body.classList.toggle("wb-erfwide", isBeside);
      this.node.dataset.maps = isBeside ? "beside" : views <= 4 ? "large" : "small"; // the panel's height goes by it
      const parts = el("dl", { class: "wb-parts" }, ...p.parts.map(([term, text]) =>
        el("div", { title: text }, el("dt", { text: term }), el("dd", { text }))));
      this.side.replaceChildren(...[parts, notes(p)].filter(Boolean));
      this.body.replaceChildren(this.mapRow, this.side);
      this.showMaps();
    }

    difference() {
      return this.payload.differences.find((d) => d.key === this.rival) || null;
    }

    showMaps() {
      const p = this.payload;
      const difference = this.difference();
      const specs = difference ? [...p.maps, difference.map] : p.maps;
      this.dropMaps(specs.map((spec) => spec.key));
      for (const spec of specs) if (!this.maps.has(spec.key)) this.maps.set(spec.key, new MapView(this));
      const field = el("div", { class: "wb-erfscale" }, scale(p.scale), lines(p.legend));
      this.mapRow.replaceChildren(
        ...specs.map((spec) => this.maps.get(spec.key).node), field, ...(difference ? [ends(difference.scale)] : []));
      for (const spec of specs) this.maps.get(spec.key).update(spec);
      if (difference && p.differences.length > 1) this.maps.get(difference.map.key).caption.replaceChildren(this.chooser(difference));
    }

    /* Which rival the difference is to: one dot each, in the rival's colour. */
    chooser(current) {
      return el("span", { class: "wb-rivals", role: "radiogroup", "aria-label": "Difference to" },
        el("span", { class: "wb-rivalname", text: `difference to ${current.name}` }),
        ...this.payload.differences.map((d) => el("button", {
          type: "button", role: "radio", class: `wb-rival wb-fill-${d.key}`, "data-rival": d.key,
          "aria-checked": String(d.key === current.key), "aria-label": d.name, title: `Difference to ${d.name}`,
          onclick: () => {
            this.rival = d.key;
            this.showMaps();
            const again = this.mapRow.querySelector(`.wb-rival[data-rival="${d.key}"]`);
            if (again) again.focus();
          },
        })));
    }

    buildEmpty(spec) {
      this.body.classList.remove("wb-erfwide");
      super.buildEmpty(spec);
    }
  }

  /* One bar per block over the depth; the maps are of the block that was clicked. */
  class ErfPaths extends Panel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.chosen = null; // name of the block that the reader chose
    }

    index() {
      const at = this.payload.blocks.findIndex((block) => block.text === this.chosen);
      return at >= 0 ? at : this.payload.chosen;
    }

    build() {
      const p = this.payload;
      this.rows = p.blocks.map((block) => {
        const ends = { left: p.zero || 0, right: p.zero || 0 }; // with `zero`, segments against it go to the left
        const track = el("span", { class: p.zero === undefined ? "wb-pathtrack" : "wb-pathtrack wb-signed" }, ...block.segments.map((segment) => {
          const node = el("i", { title: segment.tip, "data-path": segment.path });
          node.style.width = `${100 * segment.share}%`;
          if (p.zero !== undefined) {
            if (segment.against) ends.left -= segment.share;
            node.style.left = `${100 * (segment.against ? ends.left : ends.right)}%`;
            if (!segment.against) ends.right += segment.share;
          }
          node.style.background = `var(--wb-${segment.colour.slice(1)})`;
          return node;
        }));
        if (p.zero !== undefined) {
          const zero = el("b", { class: "wb-zero", "aria-hidden": "true" });
          zero.style.left = `${100 * p.zero}%`;
          track.append(zero);
        }
        return el("button", {
          type: "button", role: "radio", class: "wb-pathrow", "data-block": block.text, "aria-label": block.alt, title: block.kind,
          onclick: () => this.choose(block.text),
        }, el("span", { class: "wb-number", text: block.text }), track);
      });
      const head = el("div", { class: "wb-heading wb-pathhead" }, ...legend(p.legend));
      const list = el("div", { class: "wb-pathrows", role: "radiogroup", "aria-label": "Block whose maps are shown" }, ...this.rows);
      const bars = el("div", { class: "wb-pathbars" }, head, list, el("div", { class: "wb-axisnote wb-muted", text: p.under, title: p.under }));
      this.side.replaceChildren(this.mapRow, ...[scale(p.scale), notes(p)].filter(Boolean));
      this.body.replaceChildren(bars, this.side);
      this.showMaps();
    }

    choose(block) {
      this.chosen = block;
      this.showMaps();
    }

    showMaps() {
      const p = this.payload;
      const at = this.index();
      this.rows.forEach((row, i) => row.setAttribute("aria-checked", String(i === at)));
      this.sentence.textContent = this.sentence.title = p.blocks[at].sentence;
      // One whole for all blocks (the gradient at the input), or each block's own.
      const whole = p.totals ? p.totals[at] : { ...p.total, right: { text: p.blocks[at].sum } };
      const specs = [...p.views[at], whole];
      this.dropMaps(specs.map((spec) => spec.key));
      for (const spec of specs) if (!this.maps.has(spec.key)) this.maps.set(spec.key, new MapView(this));
      this.mapRow.replaceChildren(...specs.map((spec) => this.maps.get(spec.key).node));
      this.mapRow.style.setProperty("--wb-columns", specs.length > 4 ? 3 : 2);
      this.mapRow.style.setProperty("--wb-aspect", p.input[1] / p.input[0]);
      for (const spec of specs) this.maps.get(spec.key).update(spec);
    }
  }

  return { KINDS: { erflab: ErfLab, erfpaths: ErfPaths } };
};
