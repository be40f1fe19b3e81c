"use strict";
/* Roofline and what-if: the payload holds every cost and rate, so a slider never asks the server. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.roofline = (kit) => {
  const { P, CONFIG, Panel, el, css, themed, number } = kit;
  const { csv } = window.WorkbenchParts.table(kit);
  const { LAUNCH, floorsOf, time, si, unitOf, whole, sum, networkOf, PayMap } = window.WorkbenchParts.floors(kit);
  const SLIDERS = [["batch", "batches", "Batch, images"], ["size", "sizes", "Input, px"], ["step", "steps", "ES2D step"]];
  const RELEASE_MS = 350;
  const ANSWER_MS = 15000; // so long an answer may take that belongs to what was asked

  class RooflineLab extends Panel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.controls = el("div", { class: "wb-roofcontrols" });
      this.plot = el("div", { class: "wb-chart", role: "img" });
      this.plotHead = el("div", { class: "wb-heading" });
      this.map = new PayMap((size, batch) => { this.setting.size = size; this.change("batch", batch, true); });
      this.measured = el("div", { class: "wb-roofmeasured", role: "status" });
      this.table = el("div", { class: "wb-scroller wb-rooftable", tabindex: "0", role: "region", "aria-label": "Costs and floors of both schemes" });
      this.note = el("p", { class: "wb-note" });
      this.waiting = el("div", { class: "wb-roofwaiting" });
      this.observer = new ResizeObserver(() => this.drawPlot());
      this.observer.observe(this.plot);
    }

    build() {
      const p = this.payload;
      this.body.classList.add("wb-roofbody");
      const given = this.key(p.setting);
      // An answer to an older question must not move the sliders back.
      const isOld = this.timer || (this.asked && this.asked.key !== given && performance.now() < this.asked.until);
      if (!this.setting || (given !== this.given && !isOld)) this.setting = { ...p.setting };
      if (this.asked && this.asked.key === given) this.asked = null;
      this.given = given;
      this.index = new Map(p.schemes.map((scheme, i) => [scheme.scan, i]));
      this.note.textContent = this.note.title = (p.notes || []).join(" ");
      this.badges.append(el("button", { type: "button", class: "wb-linkbutton wb-save", text: "CSV", title: "Floors of every scheme at this setting, with exact values", onclick: () => this.save() }));
      this.buildControls();
      this.map.build(p);
      this.body.replaceChildren(
        this.controls,
        el("div", { class: "wb-roofcharts" },
          el("div", { class: "wb-roofleft" }, this.plotHead, this.plot),
          this.map.node, this.waiting),
        this.measured, this.table, this.note,
      );
      this.refresh();
    }

    buildControls() {
      const p = this.payload;
      const devices = p.devices.slice();
      if (!devices.some((d) => d.is_here)) devices.push({ key: p.here, text: "This machine" });
      this.device = el("select", { class: "wb-select wb-roofselect", "aria-label": "Device", onchange: () => this.change("device", this.device.value, true) },
        ...devices.map((d) => el("option", { value: d.key, text: d.text })));
      this.sliders = SLIDERS.filter(([, list]) => p[list].length > 1).map(([name, list, label]) => {
        const input = el("input", {
          type: "range", min: "0", max: String(p[list].length - 1), step: "1", "aria-label": label, "data-name": name,
          oninput: () => this.change(name, p[list][Number(input.value)]), onchange: () => this.release(),
        });
        const output = el("output", { class: "wb-number" });
        return { name, list, input, output, node: el("label", { class: "wb-roofcontrol" }, el("span", { text: label }), el("div", {}, input, output)) };
      });
      const segmented = (label, name, items) => {
        const node = el("div", { class: "wb-segmented", role: "radiogroup", "aria-label": label }, ...items.map((item) => el("button", {
          type: "button", role: "radio", "data-key": item.key, text: item.text, onclick: () => this.change(name, item.key, true),
        })));
        return { name, node: el("div", { class: "wb-roofcontrol" }, el("span", { text: label }), node), buttons: [...node.children] };
      };
      this.segments = [segmented("Type", "dtype", p.dtypes.map((d) => ({ key: d.key, text: d.key }))),
        segmented("Passes", "passes", p.passes.map((x) => ({ key: x.key, text: x.key === "train" ? "and backward" : x.text })))];
      const device = el("label", { class: "wb-roofcontrol wb-roofdevice" }, el("span", { text: "Device" }), this.device);
      this.controls.replaceChildren(device, ...this.sliders.map((s) => s.node), ...this.segments.map((s) => s.node));
    }

    change(name, value, isFinal) {
      this.setting[name] = value;
      this.refresh();
      if (isFinal) this.release();
    }

    release() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => {
        this.timer = 0;
        this.asked = { key: this.key(this.setting), until: performance.now() + ANSWER_MS };
        this.trigger("choose", { do: "what", ...this.setting, device: this.deviceKey(this.setting.device) });
      }, RELEASE_MS);
    }

    /* The server may call this machine by its name. */
    deviceKey(device) {
      const found = this.payload.devices.find((d) => d.key === device || d.name === device);
      return found ? found.key : device;
    }

    key(s) {
      return [this.deviceKey(s.device), s.size, s.batch, s.step, s.dtype, s.passes].join();
    }

    get rates() {
      const key = this.deviceKey(this.setting.device);
      return this.payload.devices.find((d) => d.key === key);
    }

    scanA() {
      const p = this.payload;
      return p.steps.length ? `${p.step_scan}${this.setting.step}` : p.a;
    }

    refresh() {
      const p = this.payload;
      const { setting, rates } = this;
      this.device.value = rates ? rates.key : setting.device;
      this.device.title = rates ? rates.source : "";
      for (const { name, list, input, output } of this.sliders) {
        input.value = String(Math.max(0, p[list].indexOf(setting[name])));
        output.textContent = String(setting[name]);
      }
      for (const { name, buttons } of this.segments) for (const b of buttons) b.setAttribute("aria-checked", String(b.dataset.key === setting[name]));
      this.node.classList.toggle("wb-roofnone", !rates);
      this.waiting.textContent = rates ? "" : "This machine’s ceilings are not measured yet: copy, matrix product and exp take about two seconds once it is their turn. Choose a published device meanwhile.";
      if (!rates) {
        this.table.replaceChildren();
        this.measured.replaceChildren();
        this.sentence.textContent = this.sentence.title = p.waiting;
        return;
      }
      this.all = p.schemes.map((_, i) => floorsOf(p, i, rates, setting));
      this.slots = ["a", "b"].map((slot) => {
        const scan = slot === "a" ? this.scanA() : p.b;
        const i = this.index.get(scan);
        return { slot, scan, i, ...p.schemes[i], stages: this.all[i] };
      });
      this.points = this.pointsMeasured();
      this.drawPlot();
      this.map.paint(setting, rates, ...this.slots);
      this.fillTable();
      this.showMeasured();
      this.sentence.textContent = this.sentence.title = this.words();
    }

    network(stages, value) {
      return networkOf(this.payload, stages, value);
    }

    /* Measured points of exactly this setting, none on another device. */
    pointsMeasured() {
      const s = this.setting;
      if (!this.rates.is_here) return [];
      return this.payload.measured.filter((m) => !m.status && ["size", "batch", "dtype", "passes"].every((key) => m[key] === s[key]) && this.slots.some((slot) => slot.scan === m.scan));
    }

    words() {
      const { setting: s, rates, payload: p } = this;
      const [a, b] = this.slots.map((slot) => ({ ...slot, seconds: this.network(slot.stages, (x) => x.least) }));
      const where = `${s.size} px, batch ${s.batch}, ${s.dtype}, ${p.passes.find((x) => x.key === s.passes).text} on ${rates.name}`;
      const how = rates.is_here ? "Model with rates measured on this machine." : "Model with published peak rates: nothing was run.";
      if ([a, b].every((slot) => slot.stages.every((x) => x.limiter === LAUNCH))) {
        return `At ${where} the scans are done before a kernel has started: ${sum(p.stages.map((x) => x.blocks))} launches take ${time(a.seconds)} with ${a.inline} and with ${b.inline} alike, so reading fewer tokens buys no time. ${how}`;
      }
      const limits = a.stages.map((x) => p.limiters[x.limiter].words);
      const limit = new Set(limits).size === 1 ? limits[0] : limits.map((text, j) => `${text} (stage ${p.stages[j].stage})`).join(" and ");
      return `At ${where} the network's scans take at least ${time(a.seconds)} with ${a.inline}, limited by ${limit}, and ${time(b.seconds)} with ${b.inline}, ${number(b.seconds / a.seconds)} times as long. ${how}`;
    }

    /* The roofline */

    drawPlot() {
      if (!this.all || !this.rates || !this.plot.clientWidth) return;
      const { payload: p, rates, setting } = this;
      const [a, b] = this.slots;
      const total = (of) => this.network(a.stages, of);
      const mix = total((x) => x.flops);
      const ceilings = {
        peak: 2 * rates.fma, fma: (rates.fma * mix) / total((x) => x.fmas), exp: (rates.exp * mix) / total((x) => x.exps),
      };
      const place = (x) => [x.flops / x.bytes, x.flops / x.least];
      const spots = this.all.flat().map(place);
      const lowest = Math.min(ceilings.exp, ceilings.fma);
      const quarter = (value, round) => round(4 * Math.log10(value)) / 4;
      const measured = this.points.map((m) => {
        const slot = this.slots.find((x) => x.scan === m.scan);
        const j = p.stages.findIndex((x) => x.stage === m.stage);
        return { m, slot, j, x: place(slot.stages[j])[0], y: (ms) => (1000 * slot.stages[j].flops) / ms };
      });
      const ys = [...spots.map(([, y]) => y), ...measured.map(({ m, y }) => y(m.p80))];
      const xs = [...spots.map(([x]) => x), lowest / rates.memory];
      const x0 = quarter(Math.min(...xs) / 3, Math.floor);
      const x1 = quarter(Math.max(...xs, ceilings.peak / rates.memory) * 22, Math.ceil);
      const y0 = quarter(Math.min(...ys, lowest) / 3, Math.floor);
      const y1 = Math.log10(ceilings.peak * 2.6);
      const [left, right] = [10 ** x0, 10 ** x1];
      const line = (x, y, colour, width, dash) => ({ type: "scatter", mode: "lines", x, y, line: { color: colour, width, dash }, hoverinfo: "skip", showlegend: false });
      const ridge = (level) => level / rates.memory;
      const data = [
        line([ridge(ceilings.peak), right], [ceilings.peak, ceilings.peak], "@conv", 1, "dot"),
        line([ridge(ceilings.fma), right], [ceilings.fma, ceilings.fma], "@conv", 1.2),
        line([ridge(ceilings.exp), right], [ceilings.exp, ceilings.exp], "@conv", 1.2),
        line([left, ridge(ceilings.peak)], [left * rates.memory, ceilings.peak], "@conv", 1.2),
        line([left, ridge(lowest), right], [left * rates.memory, lowest, lowest], "@ink", 2.2),
      ];
      const told = (slot, x, j) => `${slot.label}, stage ${p.stages[j].stage}<br>model: at least ${time(x.least)}, ${p.limiters[x.limiter].words}<br>${number(x.flops / x.bytes)} FLOP/B, ${si(x.flops / x.least)}FLOP/s`;
      const marks = (slots, colour, size, width) => ({
        type: "scatter", mode: "markers", hovertemplate: "%{text}<extra></extra>", showlegend: false,
        x: slots.flatMap((slot) => slot.stages.map((s) => place(s)[0])), y: slots.flatMap((slot) => slot.stages.map((s) => place(s)[1])),
        text: slots.flatMap((slot) => slot.stages.map((s, j) => told(slot, s, j))),
        marker: { symbol: slots.flatMap(() => p.stages.map((s) => `${s.marker}-open`)), color: colour, size, line: { width, color: colour } },
      });
      const others = p.schemes.map((scheme, i) => ({ ...scheme, stages: this.all[i] })).filter((_, i) => i !== a.i && i !== b.i);
      // Of two that share a place both stay visible: the second is the smaller.
      data.push(marks(others, "@residual", 8, 1), marks([a], "@a", 14, 2.2), marks([b], "@b", 8, 2.2));
      for (const { m, slot, j, x, y } of measured) {
        data.push({
          type: "scatter", mode: "markers", x: [x], y: [y(m.p50)], showlegend: false, hovertemplate: "%{text}<extra></extra>",
          text: [`${slot.label}, stage ${m.stage}<br>measured on ${m.device}, ${m.backend}: ${time(m.p50 / 1000)}<br>20 to 80 %: ${time(m.p20 / 1000)} to ${time(m.p80 / 1000)}, ${m.n} calls<br>${si(y(m.p50))}FLOP/s, ${number(m.p50 / 1000 / slot.stages[j].floor)} times the floor`],
          error_y: { type: "data", symmetric: false, array: [y(m.p20) - y(m.p50)], arrayminus: [y(m.p50) - y(m.p80)], color: `@${slot.slot}`, thickness: 1.2, width: 3 },
          marker: { symbol: p.stages[j].marker, color: `@${slot.slot}`, size: 10 },
        });
      }
      const each = (of) => number(mix / total(of), 2);
      const expWords = rates.has_exp_unit ? "exp unit" : "exp as polynomials";
      // Named at the right end: the highest above its line, the lowest below, the middle one where it has room.
      const named = [
        [`FMA alone × 2 FLOP: ${si(ceilings.peak)}`, ceilings.peak],
        [`FMA in this mix × ${each((x) => x.fmas)} FLOP: ${si(ceilings.fma)}`, ceilings.fma],
        [`${expWords} × ${each((x) => x.exps)} FLOP: ${si(ceilings.exp)}`, ceilings.exp],
      ].sort((left, right) => right[1] - left[1]);
      const px = named.map(([, level]) => ((y1 - Math.log10(level)) / (y1 - y0)) * (this.plot.clientHeight - 38));
      const annotations = named.map(([text, level], i) => {
        const isAbove = i === 0 || (i === 1 && px[2] - px[1] < 16);
        return { text, x: x1, y: Math.log10(level), xanchor: "right", yanchor: isAbove ? "bottom" : "top", showarrow: false, font: { size: 10.5, color: "@muted" }, borderpad: 1 };
      });
      annotations.push(this.onDiagonal(rates.memory, x0, x1, y0, y1, `memory, ${si(rates.memory)}B/s`));
      const axis = { type: "log", color: "@muted", gridcolor: "@line", linecolor: "@line", zeroline: false, ticks: "", tickfont: { size: 10.5 }, dtick: 1, exponentformat: "power", fixedrange: true };
      const [w, h] = [this.plot.clientWidth, this.plot.clientHeight];
      const layout = themed({
        width: w, height: h, margin: { l: 44, r: 8, t: 6, b: 32 }, showlegend: false, dragmode: false, hovermode: "closest",
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: "@muted", size: 11, family: "system-ui, sans-serif" },
        xaxis: { ...axis, range: [x0, x1], title: { text: "FLOP for each byte that must move", font: { size: 10.5 }, standoff: 4 } },
        yaxis: { ...axis, range: [y0, y1], title: { text: "FLOP/s", font: { size: 10.5 }, standoff: 2 } },
        annotations,
        hoverlabel: { bgcolor: css("--wb-paper"), bordercolor: css("--wb-line"), font: { color: css("--wb-ink"), size: 11 } },
      });
      this.plot.setAttribute("aria-label", `Roofline of ${rates.name}: memory ${si(rates.memory)}B/s, FMA ceiling ${si(ceilings.fma)}FLOP/s, exp ceiling ${si(ceilings.exp)}FLOP/s`);
      this.node.dataset.ceilings = JSON.stringify(ceilings);
      P.react(this.plot, themed(data), layout, CONFIG);
      const dot = (tone) => el("i", { class: `wb-dot wb-ring wb-ring-${tone}` });
      const legend = (mark, text) => el("span", { class: "wb-legend" }, mark, document.createTextNode(text));
      const used = p.stages.map((s) => `${s.sign} stage ${s.stage}`).join("  ");
      this.plotHead.replaceChildren(
        el("span", { text: "Roofline, model", title: "A ceiling is a unit’s rate times the FLOP that this scan does for each of its instructions" }), legend(dot("a"), a.short), legend(dot("b"), b.short), legend(dot("rest"), "other schemes"),
        el("span", { class: "wb-legend", text: used }), measured.length ? el("span", { class: "wb-legend", text: `● measured, ${setting.dtype}` }) : "",
      );
    }

    /* The memory's name, written along its line. */
    onDiagonal(memory, x0, x1, y0, y1, text) {
      const [w, h] = [this.plot.clientWidth - 52, this.plot.clientHeight - 38];
      const slope = ((x1 - x0) / w) * (h / (y1 - y0));
      const angle = (-180 / Math.PI) * Math.atan(slope);
      const reach = 5.4 * text.length * Math.cos(Math.atan(slope)); // px that the words take along x
      const start = Math.max(x0, y0 - Math.log10(memory)); // where the diagonal enters the picture
      const x = start + ((reach / 2 + 14) / w) * (x1 - x0);
      return { text, showarrow: false, font: { size: 10.5, color: "@muted" }, x, y: x + Math.log10(memory), textangle: angle, xanchor: "center", yanchor: "middle", xshift: -9 * Math.sin(Math.atan(slope)), yshift: 9 * Math.cos(Math.atan(slope)) };
    }

    /* The table */

    fillTable() {
      const { payload: p, rates } = this;
      const rows = [];
      p.stages.forEach((s, j) => this.slots.forEach((slot) => rows.push({
        slot, name: `stage ${s.stage}`, tip: `One of ${s.blocks} scans of the stage`, ...slot.stages[j], limits: [slot.stages[j].limiter], isLast: slot.slot === "b",
        measured: this.points.find((m) => m.scan === slot.scan && m.stage === s.stage),
      })));
      for (const slot of this.slots) {
        const all = (of) => this.network(slot.stages, of);
        rows.push({
          slot, name: "network", tip: p.stages.map((s) => `${s.blocks} × stage ${s.stage}`).join(" + "), isNetwork: true,
          tokens: all((x) => x.tokens), depth: all((x) => x.depth), bytes: all((x) => x.bytes), flops: all((x) => x.flops), exps: all((x) => x.exps),
          parts: [0, 1, 2].map((i) => all((x) => x.parts[i])), floor: all((x) => x.floor), least: all((x) => x.least),
          limits: [...new Set(slot.stages.map((x) => x.limiter))],
        });
      }
      const longest = Math.max(...rows.flatMap((row) => row.parts));
      const [size, unit] = unitOf(Math.max(longest, ...rows.map((row) => row.least)));
      const inUnit = (seconds) => (seconds / size < 0.0005 ? "< 0.001" : number(seconds / size, seconds / size < 0.01 ? 1 : 3));
      const bar = (seconds, kind, isLimit) => {
        const fill = el("i", { class: `wb-roofbar wb-roofbar-${kind}` });
        fill.style.width = `${(100 * seconds) / longest}%`;
        return el("td", { class: `wb-roofbarcell${isLimit ? " wb-rooflimit" : ""}`, title: `${seconds} s` }, el("div", {}, el("span", { class: "wb-rooftrack" }, fill), el("span", { class: "wb-number", text: inUnit(seconds) })));
      };
      const has = this.points.length > 0;
      const heads = [["scheme", ""], ["scans", ""], ["tokens read", "", "Steps of all images and sequences, pads included"], ["depth", "steps", "Steps that wait for each other; no floor"], ["moved", "MB"], ["work", "GFLOP"], ["exps", "M"],
        ["memory", unit], [rates.has_exp_unit ? "FMA" : "arithmetic", unit], [rates.has_exp_unit ? "exp" : "exp, polynomials", unit], ["at least", unit, "The longest of the three, and no less than starting a kernel takes"], ["limited by", ""], ...(has ? [["measured", unit, "Median of this scan alone on this machine"]] : [])];
      const head = heads.map(([text, small, tip], i) => el("th", { scope: "col", class: (i > 1 && i < 7) || i === 10 || i === 12 ? "wb-number" : i > 6 && i < 10 ? "wb-roofbarhead" : "" },
        el("span", { class: "wb-columnhead", title: tip }, el("span", { text }), small ? el("span", { class: "wb-unit", text: small }) : null)));
      const cell = (text, tip) => el("td", { class: "wb-number", text, title: tip });
      this.table.replaceChildren(el("table", { class: "wb-data" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.map((row) => el("tr", { class: `wb-row-${row.slot.slot}${row.isNetwork ? " wb-roofnetwork" : ""}`, "data-row": `${row.slot.slot}:${row.name}`, "data-floor": String(row.floor), "data-least": String(row.least) },
        el("th", { scope: "row" }, el("span", { class: "wb-rowname", text: row.slot.short, title: row.slot.label })),
        el("td", { class: row.isNetwork ? "" : "wb-muted", text: row.name, title: row.tip }),
        cell(whole(row.tokens), row.sequences ? `${this.setting.batch} × ${row.sequences} sequences of ${whole(row.length)}` : null),
        cell(whole(row.depth)), cell(number(row.bytes / 1e6), `${whole(row.bytes)} B`), cell(number(row.flops / 1e9), whole(row.flops)), cell(number(row.exps / 1e6), whole(row.exps)),
        ...["memory", "fma", "exp"].map((kind, i) => bar(row.parts[i], kind, row.limits.length === 1 && row.limits[0] === i)),
        el("td", { class: "wb-number wb-roofleast", text: inUnit(row.least), title: `floor ${row.floor} s, with launches ${row.least} s` }),
        el("td", { text: row.limits.map((i) => p.limiters[i].key.replace(" latency", "")).join(", "), title: row.limiter === LAUNCH && !row.isNetwork ? `Floor ${time(row.floor)}; starting a kernel takes ${time(rates.launch)}` : null }),
        has ? cell(row.measured ? inUnit(row.measured.p50 / 1000) : row.isNetwork ? "" : "–", row.measured ? `20 to 80 %: ${time(row.measured.p20 / 1000)} to ${time(row.measured.p80 / 1000)}; ${row.measured.clock}` : null) : "",
      )))));
    }

    showMeasured() {
      const m = this.payload.measured.find((x) => !x.status);
      if (!m || this.points.length) {
        this.measured.replaceChildren(...(m ? [el("span", { class: "wb-muted", text: `Filled points: ${m.backend} backend on ${m.device}, ${m.n} calls each, the scan alone with its projections given; bars from 20 to 80 %.` })] : []));
        return;
      }
      const setting = { device: this.payload.here, size: m.size, batch: m.batch, dtype: m.dtype, passes: m.passes };
      const step = m.scan.startsWith(this.payload.step_scan) ? Number(m.scan.slice(this.payload.step_scan.length)) : this.setting.step;
      this.measured.replaceChildren(
        el("span", { class: "wb-muted", text: `Measured on this machine: ${m.size} px, batch ${m.batch}, ${m.dtype}, ${this.payload.passes.find((x) => x.key === m.passes).text}.` }),
        el("button", { type: "button", class: "wb-button wb-roofgo", text: "Show measured points", onclick: () => { Object.assign(this.setting, setting, { step }); this.refresh(); this.release(); } }),
      );
    }

    save() {
      const { payload: p, rates, setting } = this;
      if (!rates) return;
      const columns = ["scan", "stage", "blocks", "device", "size", "batch", "dtype", "passes", "sequences", "length", "depth", "bytes", "flops", "fmas", "exps", "memory_s", "fma_s", "exp_s", "floor_s", "with_launch_s", "limiter"].map((key) => ({ key, text: key, kind: "text" }));
      const rows = this.all.flatMap((stages, i) => stages.map((x, j) => ({ cells: {
        ...x, ...setting, scan: p.schemes[i].scan, stage: p.stages[j].stage, blocks: p.stages[j].blocks, device: rates.name,
        memory_s: x.parts[0], fma_s: x.parts[1], exp_s: x.parts[2], floor_s: x.floor, with_launch_s: x.least, limiter: p.limiters[x.limiter].key,
      } })));
      const url = URL.createObjectURL(new Blob([csv(columns, rows)], { type: "text/csv" }));
      el("a", { href: url, download: p.csv_name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    }

    themeChanged() {
      this.drawPlot();
    }

    dispose() {
      this.observer.disconnect();
      clearTimeout(this.timer);
      super.dispose();
    }
  }

  return { kernroof: RooflineLab };
};
