"""One setting of a sweep: the network or its first scan, how it is run, compared and weighed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType

from kernels import ScanSpec, resolve_backend, scan_order
from kernels._bench.cases import Case
from kernels._bench.contenders import CONTENDERS, why_unavailable
from models import EfficientVMamba, with_scan
from models.layers import Scan2d
from workbench.analyses import gate
from workbench.analyses.gate import one_thread, reference_steps, relative_distance
from workbench.analyses.maps import stage_shape
from workbench.analyses.tracing import check_batch_norm, profiler, training_pass
from workbench.errors import NotAvailableError
from workbench.progress import CancelToken

Make = Callable[[str, str], EfficientVMamba]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative L2 distance from the float32 reference that is still rounding: outputs, gradients.
TOLERANCES = {
    "float32": (gate.TOLERANCE, 1e-3),
    "bfloat16": (5e-2, 5e-2),
    "float16": (1e-2, 1e-2),
}
GATE_SIDE = 16  # tokens; a compared map keeps each side's remainder by 8: pads stay pads
# Input of which gradients are compared, in pixels: on fewer tokens batch norm blows rounding up.
GRADIENT_SIZE = 64
GRADIENT_BATCH = 2
# Half of what the other gate allows: a sweep compares at every point, but no size twice. The
# reference's steps take longer with more images.
MAX_REFERENCE_STEPS = gate.MAX_REFERENCE_STEPS // 2
IMAGES_PER_STEP = 4
DRAWN_IMAGES = 4  # further images repeat them, which changes no time


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a point depends on. `scan` as full `ScanSpec` text."""

    subject: str  # "model" or "scan"
    passes: str  # "forward" or "train"
    model: str
    scan: str
    size: int  # input pixels
    batch: int
    dtype: str
    backend: str

    @property
    def line(self) -> Setting:
        """The same without the size of the work: what costs are carried over within."""
        return replace(self, size=0, batch=0)


@dataclass(frozen=True)
class Subject:
    """What is timed. `run` is one call; it does not wait for a GPU."""

    setting: Setting
    backend: str  # that runs, by name
    device: torch.device
    run: Callable[[], object]
    release: Callable[[], None]  # forget what the last call left behind
    compare: Callable[[CancelToken], float]  # relative L2 distance from the reference


class WrongOutputError(ValueError):
    """What was computed is not what the reference computes."""

    def __init__(self, what: str, distance: float, tolerance: float) -> None:
        super().__init__(
            f"wrong: the distance of {what} from the reference is {distance:.1e} (relative), at "
            f"most {tolerance:.0e} is rounding"
        )
        self.distance = distance


def scan_work(model: EfficientVMamba, setting: Setting) -> tuple[int, int]:
    """Tokens that the scans of one image read, pads included, and the longest sequence of dependent
    steps; of the first scan alone where that is the subject."""
    stages = [block.stage for block in model.blocks() if block.has_scan]
    if setting.subject == "scan":
        stages = stages[:1]
    maps = [stage_shape(model, stage, setting.size, setting.size)[:2] for stage in stages]
    orders = [scan_order(setting.scan, *shape) for shape in maps]
    return sum(order.index.size for order in orders), max(order.length for order in orders)


def build(setting: Setting, make: Make, device: torch.device) -> Subject:
    """The subject of `setting`, on seeded noise as images: times do not depend on the picture.

    Raises `NotAvailableError` where the backend cannot run here.
    """
    device, backend = _place(setting, device)
    shared = make(setting.model, setting.scan)
    network = _own_network(shared, setting, backend, device)
    x = images(setting.batch, setting.size, device, DTYPES[setting.dtype])
    if setting.passes == "train":
        check_batch_norm(network, x)
    if setting.subject == "scan":
        return _scan_subject(setting, network, x, backend, device)

    def compare(token: CancelToken) -> float:
        return _compare_network(network, shared, setting, x, token)

    return Subject(
        setting=setting,
        backend=backend,
        device=device,
        run=_network_pass(network, x, setting.passes),
        # Without gradients the weights are those of a shared network: nothing of it is touched.
        release=network.zero_grad if setting.passes == "train" else _nothing,
        compare=compare,
    )


def _nothing() -> None:
    """There is nothing to release."""


def images(batch: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Seeded noise as normalised images, `[B, 3, size, size]`."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(min(batch, DRAWN_IMAGES), 3, size, size, generator=generator)
    return drawn[torch.arange(batch) % DRAWN_IMAGES].to(device, dtype)


def _place(setting: Setting, device: torch.device) -> tuple[torch.device, str]:
    """Where and by what a setting runs."""
    name = setting.backend
    if name == "auto":
        return device, resolve_backend(name, device, DTYPES[setting.dtype])[0]
    contender = CONTENDERS[name]
    if setting.subject == "model" and not contender.is_ours:
        raise NotAvailableError(
            f"not run: {name} is an operator, not a network's backend; choose the scan alone"
        )
    reason = why_unavailable(name, device)
    if reason is not None:
        raise NotAvailableError(reason)
    return contender.device(device), name


def _own_network(
    shared: EfficientVMamba, setting: Setting, backend: str, device: torch.device
) -> EfficientVMamba:
    """A twin of `shared`; a copy where tensors have to change or get gradients."""
    network = with_scan(shared, setting.scan)
    parameter = next(shared.parameters())
    dtype = DTYPES[setting.dtype]
    is_training = setting.passes == "train"
    if is_training or parameter.dtype != dtype or parameter.device != device:
        network = copy.deepcopy(network).to(device, dtype)
    _set_backend(network, backend)
    if is_training:
        return network.requires_grad_(True).train()
    return network.eval()


def _set_backend(network: EfficientVMamba, backend: str) -> None:
    if backend not in CONTENDERS or not CONTENDERS[backend].is_ours:
        return  # of the scan alone; the network only gives the input
    for module in network.modules():
        if isinstance(module, Scan2d):
            module.backend = backend


def _network_pass(network: EfficientVMamba, x: Tensor, passes: str) -> Callable[[], object]:
    if passes == "train":
        return training_pass(network, x)

    def forward() -> Tensor:
        with torch.no_grad():
            return network(x)

    return forward


# The whole network against the reference


def gate_size(model: EfficientVMamba, scan: str, size: int, batch: int) -> int:
    """`size`, or a smaller one (the same modulo 64 px) that the reference can afford."""
    twin = with_scan(model, scan)
    allowed = MAX_REFERENCE_STEPS / max(1.0, batch / IMAGES_PER_STEP)
    while reference_steps(twin, size, size) > allowed:
        smaller = size - -(-size // 4 // 64) * 64
        if smaller < 32:
            return size
        size = smaller
    return size


def _compare_network(
    network: EfficientVMamba,
    shared: EfficientVMamba,
    setting: Setting,
    x: Tensor,
    token: CancelToken,
) -> float:
    """Largest distance from the reference backend in float32, which runs the plain operators.

    Of the logits; of every scan's output on the very input that the reference got, because a norm
    follows each scan and hides its scale; with "train" also of the gradients. Raises
    `WrongOutputError` where one is beyond rounding.
    """
    reference = copy.deepcopy(with_scan(shared, setting.scan)).to(x.device, torch.float32)
    reference.requires_grad_(False).eval()
    _set_backend(reference, "reference")
    ours = with_scan(network, setting.scan).eval()
    size = gate_size(network, setting.scan, setting.size, setting.batch)
    pixels = images(setting.batch, size, x.device, torch.float32)
    distances: dict[str, float] = {}
    handles = []
    for name, module in reference.named_modules():
        if isinstance(module, Scan2d):

            def compare(_: Any, inputs: Any, expected: Tensor, name: str = name) -> None:
                token.check()
                with torch.no_grad():
                    given = ours.get_submodule(name)(*(t.to(x.dtype) for t in inputs))
                distances[f"the output of {name}"] = relative_distance(given, expected)

            handles.append(module.register_forward_hook(compare))
    try:
        # With gradients on, nothing is fused in the reference; no weight asks for one, so no graph
        # is kept.
        with one_thread(), torch.enable_grad():
            expected = reference(pixels)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        given = ours(pixels.to(x.dtype))
    distances["the output"] = relative_distance(given, expected)
    check_distances(distances, TOLERANCES[setting.dtype][0])
    if setting.passes == "train":
        token.check()
        if setting.dtype == "float32":
            found = _gradient_distances(network, reference, x)
            check_distances(found, TOLERANCES[setting.dtype][1])
            distances |= found
        else:
            # In 16 bits batch norm on a few tokens blows rounding up to a tenth of the gradients;
            # those of the scan, the one operator that is ours, tell right from wrong.
            backend = next(m.backend for m in network.modules() if isinstance(m, Scan2d))
            distances["the scan"] = _compare_scan(setting, _scan_input(ours, x), backend)
    return max(distances.values())


def _gradient_distances(
    network: EfficientVMamba, reference: EfficientVMamba, x: Tensor
) -> dict[str, float]:
    """Of a training pass on a small input: all gradients together, and those of the scans."""
    pixels = images(GRADIENT_BATCH, GRADIENT_SIZE, x.device, torch.float32)
    reference.requires_grad_(True).train()
    network.train()
    ours = _gradients(network, pixels.to(x.dtype))
    with one_thread():
        exact = _gradients(reference, pixels)
    scans = [name for name in exact if name in network.no_weight_decay()]
    distances = {}
    for words, names in (("the gradients", list(exact)), ("the scans' gradients", scans)):
        given, expected = (
            torch.cat([g[n].double().flatten() for n in names]) for g in (ours, exact)
        )
        distances[words] = relative_distance(given, expected)
    return distances


def _gradients(network: EfficientVMamba, pixels: Tensor) -> dict[str, Tensor]:
    # The same random draws in both: stochastic depth.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        training_pass(network, pixels)()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def check_distances(distances: dict[str, float], tolerance: float) -> None:
    """Raise `WrongOutputError` for the first that is not within `tolerance`; NaN is not."""
    for what, distance in distances.items():
        if not distance <= tolerance:
            raise WrongOutputError(what, distance, tolerance)


# The first scan alone


class _Captured(Exception):
    """Ends a pass once the scan's input is known."""


def _scan_input(network: EfficientVMamba, x: Tensor) -> list[Tensor]:
    """The map `[B, C, H, W]` and the parameters that the first scan of `network` gets."""
    found: list[Tensor] = []

    def capture(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.extend(value.detach() for value in inputs)
        raise _Captured

    first = next(module for module in network.modules() if isinstance(module, Scan2d))
    handle = first.register_forward_pre_hook(capture)
    try:
        with torch.no_grad():
            network(x)
    except _Captured:
        pass
    finally:
        handle.remove()
    return found


def _scan_subject(
    setting: Setting, network: EfficientVMamba, x: Tensor, backend: str, device: torch.device
) -> Subject:
    inputs = _scan_input(network, x)

    def compare(token: CancelToken) -> float:
        token.check()
        return _compare_scan(setting, inputs, backend)

    return Subject(
        setting=setting,
        backend=backend,
        device=device,
        run=_scan_pass(setting, inputs, backend),
        release=_nothing,
        compare=compare,
    )


def _scan_pass(
    setting: Setting, inputs: list[Tensor], backend: str
) -> Callable[[], tuple[Tensor, ...]]:
    """One call of the operator: its output, and with "train" the gradients of all inputs."""
    height, width = inputs[0].shape[2:]
    spec = str(ScanSpec.parse(setting.scan))
    # A case finds its table by pixels, four to a token in the first stage; the rest is not used.
    case = Case("tiny", 1, len(inputs[0]), "scan2d", (4 * height, 4 * width), spec)
    contender = CONTENDERS[backend]
    if setting.passes == "forward":

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (contender.operate(case, inputs),)

        return forward
    leaves = [t.detach().requires_grad_() for t in inputs]
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(inputs[0].shape, generator=generator).to(inputs[0])

    def both() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = contender.operate(case, leaves)
            return y.detach(), *torch.autograd.grad(y, leaves, grad_y)

    return both


def _compare_scan(setting: Setting, inputs: list[Tensor], backend: str) -> float:
    """Largest distance of output and gradients from the float32 reference, on a part of the map."""
    height, width = (_gate_side(side) for side in inputs[0].shape[2:])
    n_images = GRADIENT_BATCH if setting.passes == "train" else len(inputs[0])
    x = inputs[0][:n_images, :, :height, :width]
    part = [x.contiguous(memory_format=torch.channels_last), *inputs[1:]]
    given = _scan_pass(setting, part, backend)()
    with one_thread():
        expected = _scan_pass(setting, [t.float() for t in part], "reference")()
    outputs, gradients = TOLERANCES[setting.dtype]
    names = ("the output", *(f"the gradient of {name}" for name in _INPUTS))
    distances = {
        name: relative_distance(a, b) for name, a, b in zip(names, given, expected, strict=False)
    }
    check_distances({names[0]: distances[names[0]]}, outputs)
    check_distances(distances, gradients)
    return max(distances.values())


_INPUTS = ("x", "x_proj", "dt_projs", "dt_bias", "A_logs", "Ds")


def _gate_side(side: int) -> int:
    return side if side < GATE_SIDE + 8 else GATE_SIDE + side % 8


# Memory


def peak_bytes(subject: Subject) -> float:
    """Most memory that one more call takes beyond weights and inputs, in bytes.

    On a CPU by torch's own marks of its allocations, in the order in which they happened.
    """
    run, device = subject.run, subject.device
    subject.release()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    with profiler(device, profile_memory=True) as trace:
        kept = run()  # its outputs are part of the peak
    del kept
    assert trace.profiler is not None and trace.profiler.kineto_results is not None
    marks = sorted(
        (event.start_ns(), event.nbytes())
        for event in trace.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    )
    held = peak = 0
    for _, n_bytes in marks:
        held += n_bytes
        peak = max(peak, held)
    return float(peak)
