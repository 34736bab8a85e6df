"""TRL's ``DPOConfig`` with the options of prefix sharing."""

from dataclasses import dataclass, field

from trl import DPOConfig

from ridgeline.ops.common import check


@dataclass
class PrefixSharedDPOConfig(DPOConfig):
    """Every option of ``DPOConfig``, and how its batches are laid out.

    None of the three changes which pairs a step trains on, nor its loss beyond rounding; with
    ``prefix_sharing`` and ``packing`` both False the trainer runs TRL's own forward.

    Args:
        prefix_sharing: compute the prompt of a pair once. A batch that gains no token by it is
            laid out without.
        packing: put the pairs of a batch one behind another, with no padding between them.
        packing_length: most tokens of a packed row, at least ``max_length``; a batch then makes as
            many rows as it needs, and a pair longer than a row gives up sharing. ``None`` packs
            a batch into one row.

    Raises:
        TypeError, ValueError: an option is impossible, or cannot be had with shared or packed rows.
    """

    prefix_sharing: bool = field(
        default=True, metadata={"help": "Compute the prompt of a preference pair once."}
    )
    packing: bool = field(
        default=True,
        metadata={"help": "Put the pairs of a batch one behind another, without padding."},
    )
    packing_length: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a packed row; by default a batch makes one row."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check.flag("prefix_sharing", self.prefix_sharing)
        check.flag("packing", self.packing)
        if self.packing_length is not None:
            check.count("packing_length", self.packing_length, minimum=2)
            if not self.packing:
                raise ValueError("packing_length: expected None without packing")
            if self.max_length is not None and self.packing_length < self.max_length:
                raise ValueError(
                    f"packing_length: expected at least max_length ({self.max_length}), so that "
                    f"every sequence fits, got {self.packing_length}"
                )
        if self.prefix_sharing or self.packing:
            refuse(self)


def refuse(args: DPOConfig) -> None:
    """Raises ``ValueError`` for an option of TRL's that rows of several sequences cannot have."""
    found = (
        (args.padding_free, "padding_free", "False", "packing removes padding, and works"),
        (
            args.use_liger_kernel,
            "use_liger_kernel",
            "False",
            "it replaces forwards of the model",
        ),
        (
            not args.disable_dropout,
            "disable_dropout",
            "True",
            "one dropout mask would hit the prompt of both responses",
        ),
        (
            args.neftune_noise_alpha is not None,
            "neftune_noise_alpha",
            "None",
            "its noise is scaled by the length of a row, which would hold several sequences",
        ),
    )
    for given, name, expected, why in found:
        if given:
            raise ValueError(
                f"{name}: expected {expected} with prefix_sharing or packing ({why}), "
                f"got {getattr(args, name)!r}"
            )
