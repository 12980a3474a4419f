"""The table of docs/hwmodel.md: published ZCU102 results in MACs per cycle, and what the cost model gives for DeiT.

    python experiments/zcu102_table.py

For each network and precision, the fastest accelerator that fits the ZCU102 at 150 MHz by `hwmodel.explore`; cycles
are those of the shipped RTL, whether the design closes timing at this clock is an estimate. No training is involved.
"""

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator
from supernet.lowering import lower
from supernet.timm_vit import subnet_of_timm

NETWORKS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")
RATIOS = (1.0, 0.5, 0.0)

#: name, FPS, GMAC of the network where a source gives it, clock in MHz, source; FPS None where GOPS are published
PUBLISHED = (
    ("VAQF, DeiT-base, W1 A8", 24.0, 17.56, 150, "arXiv 2201.06618"),
    ("VAQF, DeiT-base, W1 A6", 30.0, 17.56, 150, "arXiv 2201.06618"),
    ("Auto-ViT-Acc, DeiT-base, 32 bits", 10.0, 17.56, 150, "arXiv 2208.05163"),
    ("Auto-ViT-Acc, DeiT-base, mixed", 56.8, 17.56, 150, "arXiv 2208.05163"),
    ("EfficientViT accelerator, 780.2 GOPS", None, 390.1, 200, "arXiv 2403.20230"),
    ("Quasar-ViT-large", 101.5, None, 150, "arXiv 2407.18175"),
    ("Quasar-ViT-small", 159.6, None, 150, "arXiv 2407.18175"),
    ("Quasar-ViT-tiny", 251.6, None, 150, "arXiv 2407.18175"),
)


def main() -> None:
    """Prints both tables as Markdown."""
    print("| published | FPS | GMAC | MHz | MAC/cycle | source |\n|---|---|---|---|---|---|")
    for name, fps, gmac, mhz, source in PUBLISHED:
        rate = "not known" if gmac is None else f"{gmac * (fps or 1) * 1e3 / mhz:,.0f}"
        shown_fps, shown_gmac = ("-" if value is None else f"{value:g}" for value in (fps, gmac if fps else None))
        print(f"| {name} | {shown_fps} | {shown_gmac} | {mhz} | {rate} | {source} |")
    device = load_device("zcu102")
    print("\n| model | 8-bit rows | FPS | GMAC | MAC/cycle | of it vector unit | array | DSP | BRAM18 | LUT |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for network in NETWORKS:
        for ratio in RATIOS:
            workload = lower(subnet_of_timm(network, high_precision_ratio=ratio))
            accelerator = best_accelerator([workload], device)
            cost = FpgaCostModel(device, accelerator).estimate(workload)
            vector = sum(layer.cycles for layer in cost.layers if layer.bound == "vector") / cost.cycles
            array = f"{accelerator.array_rows}x{accelerator.array_inputs} {accelerator.backend}"
            r = cost.resources
            print(
                f"| {network} | {ratio:.0%} | {cost.fps:.1f} | {workload.macs / 1e9:.2f} | "
                f"{workload.macs / cost.cycles:,.0f} | {vector:.0%} | {array} | {r.dsp:,} | {r.bram18:,} | {r.lut:,} |"
            )


if __name__ == "__main__":
    main()
