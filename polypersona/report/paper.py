"""What the PolyPersona paper printed: the rows that stand beside a run's own, and are never compared with it.

The paper's numbers come from other data and from a test split that shares personas with its training split.
"""

from __future__ import annotations

from typing import NamedTuple

DOMAINS = (
    "demographics", "healthcare", "education", "work_experience", "technology", "consumer_preferences", "finance",
    "social_issues", "environment", "lifestyle",
)  # fmt: skip


class Column(NamedTuple):
    """A column of Table II: its printed head, what it is, and the metric names that fill it."""

    head: str
    title: str
    metrics: tuple[str, ...]


TABLE_II_COLUMNS = (
    Column("BLEU", "BLEU", ("bleu",)),
    Column("R1", "ROUGE-1", ("rouge1",)),
    Column("R2", "ROUGE-2", ("rouge2",)),
    Column("RL", "ROUGE-L", ("rougel",)),
    Column("BERT-F1", "BERTScore F1", ("bertscoref1",)),
    Column("Qual.", "survey quality", ("surveyquality",)),
    Column("Len.", "length similarity", ("lengthsimilarity",)),
    Column("Sent.", "sentence count similarity", ("sentencesimilarity",)),
    Column("SentSim", "sentiment similarity", ("sentimentsimilarity",)),
)  # fmt: skip

TABLE_II = {
    "PolyPersona (TinyLlama 1.1B)": (0.090, 0.421, 0.128, 0.239, 0.890, 0.873, 0.865, 0.901, 0.842),
    "Phi-2": (0.087, 0.429, 0.121, 0.234, 0.891, 0.868, 0.870, 0.895, 0.846),
    "Mistral 7B": (0.085, 0.418, 0.119, 0.228, 0.887, 0.860, 0.887, 0.913, 0.839),
    "DeepSeek R1 Distill Qwen2 1.5B": (0.081, 0.429, 0.120, 0.231, 0.883, 0.882, 0.859, 0.903, 0.870),
    "Qwen2 1.5B": (0.078, 0.422, 0.115, 0.224, 0.881, 0.858, 0.854, 0.897, 0.845),
    "Qwen1.5 MoE": (0.076, 0.414, 0.110, 0.220, 0.870, 0.842, 0.811, 0.825, 0.833),
    "Llama-2 7B (finetuned)": (0.084, 0.426, 0.122, 0.233, 0.888, 0.864, 0.866, 0.905, 0.841),
}
FIGURE_4 = ("PolyPersona (TinyLlama 1.1B)", "Phi-2", "Mistral 7B", "DeepSeek R1 Distill Qwen2 1.5B")


class DomainRow(NamedTuple):
    """A row of Table III: the model that did best in the domain, and its scores."""

    model: str
    bleu: float
    rouge1: float
    quality: float


TABLE_III = {
    "social_issues": DomainRow("TinyLlama 1.1B", 0.132, 0.471, 0.889),
    "finance": DomainRow("TinyLlama 1.1B", 0.142, 0.458, 0.902),
    "technology": DomainRow("Phi-2", 0.125, 0.477, 0.936),
    "healthcare": DomainRow("DeepSeek R1 Distill Qwen2 1.5B", 0.118, 0.429, 0.884),
    "education": DomainRow("Mistral 7B", 0.120, 0.433, 0.872),
    "environment": DomainRow("TinyLlama 1.1B", 0.124, 0.439, 0.875),
    "consumer_preferences": DomainRow("Qwen2 1.5B", 0.106, 0.412, 0.861),
    "lifestyle": DomainRow("Qwen1.5 MoE", 0.099, 0.403, 0.854),
}


def domain_rank(domain: str) -> tuple[int, str]:
    """Return a sort key: the paper's ten domains in its order, then others by name."""
    return (DOMAINS.index(domain) if domain in DOMAINS else len(DOMAINS), domain)
