"use strict";
/* The attribution tab's maps: rows of the photo and its maps, over the photo as opaque as the reader wants. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.attribution = ({ Panel, MapView, el, scale }) => {
  class AttributionMaps extends Panel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.opacity = 0.65;
      this.body.classList.add("wb-attrbody");
    }

    build() {
      const p = this.payload;
      const [h, w] = p.input;
      this.mapRow.style.setProperty("--wb-columns", p.columns);
      this.mapRow.style.setProperty("--wb-aspect", w / h);
      const rows = p.maps.length / p.columns + (p.differences ? 1 : 0);
      this.node.dataset.rows = rows;
      this.node.dataset.columns = p.columns;
      const notes = [...new Set(p.notes || [])].join(" ");
      this.side.replaceChildren(
        this.slider(), scale(p.scale), el("p", { class: "wb-formula", text: p.formula, title: p.formula }),
        ...(notes ? [el("p", { class: "wb-note", text: notes, title: notes })] : []));
      this.body.replaceChildren(this.mapRow, this.side);
      this.showMaps();
    }

    /* Drawn here: the server is not asked. At the right end the photo is hidden; it stands beside. */
    slider() {
      const input = el("input", {
        type: "range", min: "0", max: "1", step: "0.05", value: String(this.opacity), "aria-label": "Opacity of the maps over the photo",
        oninput: () => {
          this.opacity = Number(input.value);
          for (const view of this.maps.values()) if (view.spec.over_photo) view.update(this.overPhoto(view.spec));
        },
      });
      return el("label", { class: "wb-opacity" }, el("span", { text: "photo" }), input, el("span", { text: "map" }));
    }

    overPhoto(spec) {
      const data = spec.figure.data.map((trace) => ({ ...trace, opacity: this.opacity }));
      return { ...spec, figure: { ...spec.figure, data } };
    }

    showMaps() {
      const p = this.payload;
      const specs = [...p.maps, ...(p.differences || [])].map((spec) => (spec.over_photo ? this.overPhoto(spec) : spec));
      this.dropMaps(specs.map((spec) => spec.key));
      for (const spec of specs) if (!this.maps.has(spec.key)) this.maps.set(spec.key, new MapView(this));
      const nodes = specs.map((spec) => this.maps.get(spec.key).node);
      if (p.differences) nodes.splice(p.maps.length, 0, this.between(p.difference_scale));
      this.mapRow.replaceChildren(...nodes);
      for (const spec of specs) this.maps.get(spec.key).update(spec);
    }

    /* Under the photos: what the colours of the differences are. */
    between(spec) {
      const ends = el("div", { class: "wb-ends" }, ...spec.ends.map((end) => el("span", { class: `wb-tone-${end.tone}`, text: end.text, title: end.text })));
      const node = el("div", { class: "wb-between" }, el("b", { text: "Difference" }), scale(spec), ends);
      node.title = spec.tip;
      return node;
    }
  }

  return { KINDS: { attrmaps: AttributionMaps } };
};
