"""Which LoRA rank? Ranks 4, 8, 16 and 32 on a binary classification task: accuracy, time, diminishing returns.

The task is built from Python's standard library (does this docstring describe this function?) and the base
model is MiniLM, so nothing is downloaded where the `offline` extra is installed. For data of your own:

    ComparisonConfig(train="train.csv", text="sentence", label="label", model="roberta-base")

Run it with `python examples/rank_comparison.py`; two CPU cores take several minutes.
"""

from itertools import pairwise

from rankwise import ComparisonConfig, RankComparison, run_rank_comparison

CONFIG = ComparisonConfig(
    model="embedded",
    task="docmatch",
    ranks=(4, 8, 16, 32),
    alpha=16,  # the same for all, with scaling alpha/rank: then all want about the same learning rate
    learning_rates=(5e-4, 1e-3, 2e-3),  # tried at every rank; the best one on validation is used
    seeds=3,
    steps=150,
    batch_size=16,
    max_length=32,
    metric="accuracy",
    margin=0.03,  # a rank suffices when it loses less than three points to the largest
)


def show(comparison: RankComparison) -> None:
    """Print each rank's measurements, then what each step up in rank brought and cost."""
    print(f"{comparison.task} on {comparison.model}; rank 0 (frozen base): {comparison.baseline.accuracy:.1%}")
    columns = ["rank", "alpha", "learning_rate", "trainable_params", "accuracy", "training_time_seconds"]
    print(comparison.to_pandas()[columns].to_string(index=False))

    print("\nDiminishing returns, step by step:")
    for lower, higher in pairwise(comparison.experiments):
        gain = 100 * (higher.accuracy - lower.accuracy)
        slower = higher.training_time_seconds / lower.training_time_seconds - 1
        larger = higher.trainable_params / lower.trainable_params
        print(
            f"  rank {lower.rank} to {higher.rank}: {gain:+.1f} points of accuracy, "
            f"{slower:+.0%} training time, {larger:.1f} times the parameters"
        )
    limits = [(row.accuracy_low, row.accuracy_high) for row in comparison.experiments]
    widths = [50 * (high - low) for low, high in limits if low is not None and high is not None]
    if widths:
        print(f"Each accuracy is known to about ±{max(widths):.1f} points (95 %): smaller steps may be chance.")
    answer = comparison.recommendation
    print(f"\nAnswer ({answer.status}): rank {answer.rank}, because {answer.reason}.")
    print(f"\nLoad the best trial with peft.PeftModel.from_pretrained(base, {str(comparison.adapter)!r})")


if __name__ == "__main__":
    show(run_rank_comparison(CONFIG))
