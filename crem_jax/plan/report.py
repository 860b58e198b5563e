"""A plan as text and as figures."""

from __future__ import annotations

import math
from typing import Any

from crem_jax.chips import GIB
from crem_jax.plan.compile import Plan
from crem_jax.plan.pods import Pod


def heading(config: str, pod: Pod) -> str:
    chip = pod.chip
    return (
        f"{config} on {pod.topology}: {pod.chips} chips of {chip.hbm / GIB:.0f} GiB, "
        f"{chip.flops / 1e12:.0f} TFLOP/s (bfloat16), {chip.bandwidth / 1e9:.0f} GB/s"
    )


def line(plan: Plan, pod: Pod) -> str:
    """One row of a sweep."""
    what = f"mesh {_mesh(plan)}, {plan.sequences:g} sequences a chip: "
    guess = plan.estimate
    if guess is None:
        return (
            what + f"does not fit, needs at least {plan.needs:.1f} of {pod.chip.hbm / GIB:.0f} GiB"
        )
    return what + (
        f"fits, {plan.peak:.1f} of {pod.chip.hbm / GIB:.0f} GiB, "
        f"at most {100 * guess.utilisation:.0f} % utilisation (estimate)"
    )


def text(plan: Plan, pod: Pod) -> str:
    """The whole plan for people."""
    chip, total = pod.chip, pod.chip.hbm / GIB
    head = f"mesh {_mesh(plan)} (data, fsdp, tensor), {plan.sequences:g} sequences a chip"
    guess = plan.estimate
    if guess is None:
        return f"{head}\ndoes not fit: needs at least {plan.needs:.2f} of {total:.0f} GiB a chip"
    lines = [
        head,
        f"memory    {plan.peak:.2f} of {total:.0f} GiB at the peak of a step "
        f"({plan.arguments:.2f} train state and batch, {plan.temporary:.2f} temporary)",
        f"model     {plan.model_flops / 1e12:.1f} TFLOP a chip and step (counted from the shapes)",
        "estimate  a roofline, not a measurement:",
        f"  {'part':<12}{'TFLOP':>9}{'GB':>9}{'FLOP/byte':>11}{'ms':>9}   bound by",
    ]
    for part in guess.parts:
        by_memory = part.bytes / chip.bandwidth > part.flops / chip.flops
        lines.append(
            f"  {part.name:<12}{part.flops / 1e12:>9.2f}{part.bytes / 1e9:>9.2f}"
            f"{part.intensity:>11.0f}{1e3 * part.seconds(chip):>9.1f}   "
            f"{'memory' if by_memory else 'arithmetic'}"
        )
    step, best = f"  step {1e3 * guess.seconds:.0f} ms", f"{100 * guess.utilisation:.0f} %"
    if plan.collectives is None:
        lines += [
            f"{step} without collectives",
            f"  utilisation at most {best}",
            "links     unknown: this jaxlib cannot read the compiled program; not estimated",
        ]
    else:
        lines += [
            f"{step} with collectives hidden, "
            f"{1e3 * (guess.compute + guess.links):.0f} ms with none hidden",
            f"  utilisation at most {best}, "
            f"{100 * guess.utilisation_exposed:.0f} % with none hidden",
            f"links     {1e3 * guess.links:.0f} ms at {chip.links / 1e9:.0f} GB/s:",
        ]
        lines += [
            f"  {each.kind:<20}{each.count:>7} x {each.bytes / 1e9:>9.2f} GB in all"
            for each in plan.collectives
        ]
    lines.append(
        f"compiled  in {plan.compile_seconds:.0f} s ({plan.compile_cpu_seconds:.0f} CPU-seconds), "
        f"{plan.host_peak_rss:.1f} GB of host memory"
    )
    return "\n".join(lines)


def figures(plan: Plan, pod: Pod) -> dict[str, Any]:
    """The plan as JSON; memory in GiB a chip (host in GB), times in seconds.

    The keys are always the same; what is not known is None.
    """
    guess, found = plan.estimate, plan.collectives
    return {
        "topology": pod.topology,
        "chips": pod.chips,
        "mesh": list(plan.mesh),
        "sequences_per_chip": plan.sequences,
        "fits": plan.fits,
        "chip_hbm_gib": pod.chip.hbm / GIB,
        "peak_hbm_gib": plan.needs if math.isfinite(plan.needs) else None,
        "arguments_gib": plan.arguments,
        "temporary_gib": plan.temporary,
        "model_tflop_per_chip": plan.model_flops / 1e12,
        "parts": guess
        and {
            part.name: {
                "tflop": part.flops / 1e12,
                "gb": part.bytes / 1e9,
                "flop_per_byte": part.intensity,
                "seconds": part.seconds(pod.chip),
            }
            for part in guess.parts
        },
        "collectives": None
        if found is None
        else {each.kind: {"count": each.count, "gb": each.bytes / 1e9} for each in found},
        "estimated_step_seconds": guess and guess.seconds,
        "estimated_utilisation": guess and guess.utilisation,
        "estimated_utilisation_nothing_hidden": None
        if guess is None or found is None
        else guess.utilisation_exposed,
        "compile_seconds": plan.compile_seconds,
        "compile_cpu_seconds": plan.compile_cpu_seconds,
        "host_peak_rss_gb": plan.host_peak_rss,
    }


def _mesh(plan: Plan) -> str:
    return " x ".join(str(size) for size in plan.mesh)
