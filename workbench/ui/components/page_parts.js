"use strict";
/* Everything around the panels: gallery, header, boxes of the sidebar, progress, pasted and dropped photos. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.page = ({ el, send }) => {
  /* A row of choices (photos) drawn as buttons; `trigger("select", {id})`. */
  class PhotoPicker {
    constructor(element, props, trigger) {
      this.props = props;
      this.trigger = trigger;
      this.node = el("div", { class: "wb-photos", role: "radiogroup", "aria-label": "Photo" });
      this.preview = el("div", { class: "wb-preview" });
      element.replaceChildren(this.node, this.preview);
    }

    update() {
      const { photos, selected, preview } = JSON.parse(this.props.value || '{"photos": []}');
      if (preview) this.showCrop(preview);
      this.node.replaceChildren(...photos.map((photo) =>
        el("button", {
          type: "button", role: "radio", class: "wb-photo", "data-photo": photo.id, title: `${photo.title}. ${photo.credit}`,
          "aria-checked": String(photo.id === selected), "aria-label": photo.title,
          onclick: () => {
            for (const node of this.node.children) node.setAttribute("aria-checked", String(node.dataset.photo === photo.id));
            this.trigger("choose", { id: photo.id });
          },
        }, el("img", { src: photo.thumbnail, alt: "" }))));
    }

    /* The whole photo with the part that the network sees. */
    showCrop({ source, size, crop, text, credit }) {
      const [height, width] = size;
      const [top, left, h, w] = crop;
      const frame = el("div", { class: "wb-crop", "aria-hidden": "true" });
      frame.style.cssText =
        `left:${(100 * left) / width}%;top:${(100 * top) / height}%;` +
        `width:${(100 * w) / width}%;height:${(100 * h) / height}%`;
      this.preview.replaceChildren(
        el("div", { class: "wb-whole" }, el("img", { src: source, alt: `${credit}. Used: ${text}` }), frame),
        el("p", { title: `${credit}. ${text}` }, el("b", { text: credit }), document.createTextNode(text)),
      );
    }
  }

  /* Text that the server keeps current: header, top 5, focus, link, progress of every panel. */
  class Status {
    constructor(element, props, trigger) {
      this.props = props;
      this.trigger = trigger;
      this.element = element;
    }

    update() {
      if (!this.props.value) return;
      const status = JSON.parse(this.props.value);
      if (status.link) {
        const url = new URL(window.location.href);
        const theme = url.searchParams.get("__theme");
        url.search = status.link;
        if (theme) url.searchParams.set("__theme", theme);
        if (url.href !== window.location.href) window.history.replaceState(window.history.state, "", url);
      }
      this.element.dataset.state = Object.keys(status.panels || {}).length ? "busy" : "idle";
      send({ kind: "status", status });
    }
  }

  class Header {
    constructor(element, props, trigger) {
      this.props = props;
      this.trigger = trigger;
      this.node = el("div", { class: "wb-header" });
      element.replaceChildren(this.node);
    }

    /* The tabs are switched in the browser; the server then computes what the tab shows. A part of a
       tab ("under") has no place of its own in the row. */
    tabs(listed, under) {
      const known = listed.map(([id]) => id);
      const asked = new URL(window.location.href).searchParams.get("tab");
      const show = (id) => {
        document.body.dataset.wbTab = id;
        for (const node of nav.children) {
          const isOpen = node.dataset.tab === (under[id] || id);
          node.setAttribute("aria-selected", String(isOpen));
          node.tabIndex = isOpen ? 0 : -1;
        }
      };
      const open = (id) => {
        show(id);
        this.trigger("pick", { tab: id });
      };
      const nav = el("nav", { class: "wb-tabs", role: "tablist", "aria-label": "Laboratories" }, ...listed.map(([id, label]) =>
        el("button", { type: "button", role: "tab", "data-tab": id, text: label, onclick: () => open(id) })));
      nav.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!by) return;
        event.preventDefault();
        event.stopPropagation();
        const current = document.body.dataset.wbTab;
        const next = known[(known.indexOf(under[current] || current) + by + known.length) % known.length];
        open(next);
        [...nav.children].find((node) => node.dataset.tab === next).focus();
      });
      show(document.body.dataset.wbTab || (known.includes(asked) || asked in under ? asked : known[0]));
      return nav;
    }

    button(text, title, onclick) {
      return el("button", { type: "button", class: "wb-linkbutton", text, title, onclick });
    }

    update() {
      const spec = JSON.parse(this.props.value || "{}");
      const copy = this.button("Link", "Copy a link to this view", async () => {
        try {
          await navigator.clipboard.writeText(window.location.href);
          copy.textContent = "Copied";
        } catch {
          copy.textContent = "In the address bar";
        }
        setTimeout(() => (copy.textContent = "Link"), 1500);
      });
      const save = this.button("Export", "Download the numbers (JSON, npz) and pictures (PNG) of the four panels", () =>
        this.trigger("choose", { id: "export" }));
      const help = el("dialog", { class: "wb-help", "aria-label": "What is shown, and how" },
        el("h2", { text: "What is shown, and how" }),
        el("dl", {}, ...(spec.help || []).flatMap(([term, text]) => [el("dt", { text: term }), el("dd", { text })])));
      help.addEventListener("click", (event) => event.target === help && help.close());
      this.node.replaceChildren(
        el("h1", { text: "EfficientVMamba Workbench" }),
        this.tabs(spec.tabs || [], spec.under || {}),
        el("div", { class: "wb-facts" }, ...(spec.facts || []).map((fact) =>
          el("span", { class: fact.tone ? `wb-fact-${fact.tone}` : "", text: fact.text, title: fact.title || fact.text }))),
        copy, save, this.button("?", "What is shown, and how", () => help.showModal()), help,
      );
    }
  }

  /* The parts of one tab; what they show is switched by the body's `data-wb-tab`, as tabs are. */
  class TabParts {
    constructor(element, props, trigger) {
      this.props = props;
      this.trigger = trigger;
      this.node = el("div", { class: "wb-segmented wb-tabparts", role: "tablist" });
      element.replaceChildren(this.node);
    }

    update() {
      const { current, parts } = JSON.parse(this.props.value || "{}");
      this.node.replaceChildren(...(parts || []).map(([id, label, tip]) => el("button", {
        type: "button", role: "tab", "aria-selected": String(id === current), "aria-checked": String(id === current), text: label, title: tip,
        onclick: () => {
          if (id === current) return;
          document.body.dataset.wbTab = id;
          this.trigger("pick", { tab: id });
        },
      })));
    }
  }

  class Sidebox {
    constructor(element, props, trigger) {
      this.props = props;
      this.trigger = trigger;
      this.node = el("div", { class: "wb-sidebox" });
      element.replaceChildren(this.node);
    }

    update() {
      const spec = JSON.parse(this.props.value || "{}");
      const rows = (spec.rows || []).map((row) => {
        const node = el(row.pick === undefined ? "div" : "button", {
          class: `wb-siderow${row.current ? " wb-current" : ""}`, type: row.pick === undefined ? null : "button",
          title: row.title || row.text, onclick: row.pick === undefined ? undefined : () => this.trigger("choose", { id: row.pick }),
        }, el("span", { text: row.text }), el("span", { class: "wb-number", text: row.value }));
        if (row.share !== undefined) node.style.setProperty("--wb-share", `${100 * row.share}%`);
        return node;
      });
      this.node.replaceChildren(
        spec.title ? el("h3", { text: spec.title }) : "", ...rows,
        spec.text ? el("p", { text: spec.text, class: spec.tone ? `wb-tone-${spec.tone}` : "" }) : "",
      );
    }
  }

  /* A pasted or dropped image goes the same way as an uploaded one. */
  function bridgeUploads() {
    const hand = (files) => {
      const input = document.querySelector("input[type=file][data-testid$='-upload-button']");
      const images = [...files].filter((file) => file.type.startsWith("image/"));
      if (!input || !images.length) return false;
      const transfer = new DataTransfer();
      transfer.items.add(images[0]);
      input.files = transfer.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
      return true;
    };
    document.addEventListener("paste", (event) => {
      if (event.clipboardData && hand(event.clipboardData.files)) event.preventDefault();
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer) hand(event.dataTransfer.files);
    });
  }
  bridgeUploads();

  return { PhotoPicker, Status, Header, Sidebox, TabParts };
};
