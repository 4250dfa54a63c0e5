"""BibTeX entries for a study's methods, data sets, scorers, statistics and tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from merganser.version import VERSION

_ARXIV: Mapping[str, tuple[str, str, str, int]] = {
    "2203.05482": (
        "wortsman2022soups",
        "Mitchell Wortsman and others",
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy without "
        "increasing inference time",
        2022,
    ),
    "2212.04089": (
        "ilharco2023task",
        "Gabriel Ilharco and others",
        "Editing Models with Task Arithmetic",
        2023,
    ),
    "2306.01708": (
        "yadav2023ties",
        "Prateek Yadav and Derek Tam and Leshem Choshen and Colin Raffel and Mohit Bansal",
        "{TIES}-Merging: Resolving Interference When Merging Models",
        2023,
    ),
    "2306.04488": (
        "rame2023rewarded",
        "Alexandre Ram{\\'e} and others",
        "Rewarded soups: towards {Pareto}-optimal alignment by interpolating weights fine-tuned on "
        "diverse rewards",
        2023,
    ),
    "2311.03099": (
        "yu2024dare",
        "Le Yu and Bowen Yu and Haiyang Yu and Fei Huang and Yongbin Li",
        "Language Models are Super {Mario}: Absorbing Abilities from Homologous Models as a Free Lunch",
        2024,
    ),
    "2312.06795": (
        "davari2024breadcrumbs",
        "MohammadReza Davari and Eugene Belilovsky",
        "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
        2024,
    ),
    "2403.19522": (
        "jang2024stock",
        "Dong-Hwan Jang and Sangdoo Yun and Dongyoon Han",
        "Model Stock: All we need is just a few fine-tuned models",
        2024,
    ),
    "2405.07813": (
        "wang2024consensus",
        "Ke Wang and Nikolaos Dimitriadis and Guillermo Ortiz-Jimenez and Fran{\\c{c}}ois Fleuret and "
        "Pascal Frossard",
        "Localizing Task Information for Improved Model Merging and Compression",
        2024,
    ),
    "2406.11617": (
        "deep2024della",
        "Pala Tej Deep and Rishabh Bhardwaj and Soujanya Poria",
        "{DELLA}-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
        2024,
    ),
    "2408.07990": (
        "wan2024fusechat",
        "Fanqi Wan and others",
        "{FuseChat}: Knowledge Fusion of Chat Models",
        2024,
    ),
    "2601.13572": (
        "yuan2026ram",
        "Xiangchi Yuan and Dachuan Shi and Chunhui Zhang and Zheyuan Liu and Shenglong Yao and "
        "Soroush Vosoughi and Wenke Lee",
        "Behavior Knowledge Merge in Reinforced Agentic Models",
        2026,
    ),
    "2605.21468": (
        "wei2026relex",
        "Zhepei Wei and Xinyu Zhu and Wei-Lin Chen and Chengsong Huang and Jiaxin Huang and Yu Meng",
        "You Only Need Minimal {RLVR} Training: Extrapolating {LLM}s via Rank-1 Trajectories",
        2026,
    ),
    "2411.00640": (
        "miller2024errorbars",
        "Evan Miller",
        "Adding Error Bars to Evals: A Statistical Approach to Language Model Evaluations",
        2024,
    ),
    "2107.03374": (
        "chen2021codex",
        "Mark Chen and others",
        "Evaluating Large Language Models Trained on Code",
        2021,
    ),
    "2203.11171": (
        "wang2022selfconsistency",
        "Xuezhi Wang and others",
        "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
        2022,
    ),
    "2503.16219": (
        "dang2025openrs",
        "Quy-Anh Dang and Chris Ngo",
        "Reinforcement Learning for Reasoning in Small {LLM}s: What Works and What Doesn't",
        2025,
    ),
    "2110.14168": (
        "cobbe2021gsm8k",
        "Karl Cobbe and others",
        "Training Verifiers to Solve Math Word Problems",
        2021,
    ),
    "2305.20050": (
        "lightman2023verify",
        "Hunter Lightman and others",
        "Let's Verify Step by Step",
        2023,
    ),
    "2206.14858": (
        "lewkowycz2022minerva",
        "Aitor Lewkowycz and others",
        "Solving Quantitative Reasoning Problems with Language Models",
        2022,
    ),
    "2402.14008": (
        "he2024olympiadbench",
        "Chaoqun He and others",
        "{OlympiadBench}: A Challenging Benchmark for Promoting {AGI} with Olympiad-Level Bilingual "
        "Multimodal Scientific Problems",
        2024,
    ),
    "1910.03771": (
        "wolf2020transformers",
        "Thomas Wolf and others",
        "{HuggingFace}'s Transformers: State-of-the-art Natural Language Processing",
        2020,
    ),
    "1912.01703": (
        "paszke2019pytorch",
        "Adam Paszke and others",
        "{PyTorch}: An Imperative Style, High-Performance Deep Learning Library",
        2019,
    ),
}

_OTHERS: Mapping[str, str] = {
    "https://dl.acm.org/doi/10.1145/325334.325242": """@inproceedings{shoemake1985slerp,
  author = {Ken Shoemake},
  title = {Animating Rotation with Quaternion Curves},
  booktitle = {Proceedings of SIGGRAPH},
  pages = {245--254},
  year = {1985},
}""",
    "holm": """@article{holm1979,
  author = {Sture Holm},
  title = {A Simple Sequentially Rejective Multiple Test Procedure},
  journal = {Scandinavian Journal of Statistics},
  volume = {6},
  number = {2},
  pages = {65--70},
  year = {1979},
}""",
    "max-t": """@book{westfall1993resampling,
  author = {Peter H. Westfall and S. Stanley Young},
  title = {Resampling-Based Multiple Testing},
  publisher = {Wiley},
  address = {New York},
  year = {1993},
}""",
    "wilson": """@article{wilson1927,
  author = {Edwin B. Wilson},
  title = {Probable Inference, the Law of Succession, and Statistical Inference},
  journal = {Journal of the American Statistical Association},
  volume = {22},
  pages = {209--212},
  year = {1927},
}""",
    "merganser": f"""@misc{{merganser,
  author = {{{{The Merganser authors}}}},
  title = {{Merganser: exact merges of language-model checkpoints at the speed of the disk}},
  note = {{Version {VERSION}}},
  howpublished = {{\\url{{https://github.com/merganser-ml/merganser}}}},
  year = {{2026}},
}}""",
    "math-verify": """@misc{mathverify,
  author = {Hynek Kydl{\\'i}{\\v{c}}ek},
  title = {{Math-Verify}: A Library for Verifying Mathematical Answers},
  howpublished = {\\url{https://github.com/huggingface/Math-Verify}},
  year = {2025},
}""",
    "lm-eval": """@misc{lmeval,
  author = {Leo Gao and others},
  title = {The Language Model Evaluation Harness},
  howpublished = {\\url{https://github.com/EleutherAI/lm-evaluation-harness}},
  year = {2024},
}""",
}

DATA_SETS: Mapping[str, str] = {
    "math.?500": "2305.20050",
    "gsm8k": "2110.14168",
    "minerva": "2206.14858",
    "olympiad": "2402.14008",
}
"""By a pattern for tasks' names: the arXiv number of the data set's paper."""

TOOLS: Mapping[str, str] = {
    "merganser": "merganser",
    "torch": "1912.01703",
    "transformers": "1910.03771",
    "math-verify": "math-verify",
    "lm-eval": "lm-eval",
}
"""By the name of a tool in a study's ``versions``: the source to cite."""


def entry(source: str, title: str = "") -> tuple[str, str]:
    """Return the BibTeX key and entry of a source.

    Args:
        source: an arXiv number, a URL, or a name that this module knows.
        title: the title of a source that this module does not know.
    """
    if source in _OTHERS:
        text = _OTHERS[source]
        return text.partition("{")[2].partition(",")[0], text
    if source in _ARXIV:
        key, author, name, year = _ARXIV[source]
        return key, _arxiv(key, author, name, year, source)
    key = "source" + re.sub(r"\W+", "", source)
    if re.fullmatch(r"\d{4}\.\d{4,5}", source):
        text = _arxiv(key, "", title or f"arXiv:{source}", 2000 + int(source[:2]), source)
        return key, text
    entry = f"@misc{{{key},\n  key = {{{key}}},\n  title = {{{{{title or source}}}}},\n"
    return key, entry + f"  howpublished = {{\\url{{{source}}}}},\n}}"


def _arxiv(key: str, author: str, title: str, year: int, number: str) -> str:
    who = f"  author = {{{author}}},\n" if author else f"  key = {{{key}}},\n"
    return (
        f"@misc{{{key},\n{who}  title = {{{title}}},\n  year = {{{year}}},\n  eprint = {{{number}}},\n"
        f"  archivePrefix = {{arXiv}},\n  howpublished = {{arXiv:{number}}},\n}}"
    )


def write(sources: Iterable[tuple[str, str]]) -> tuple[dict[str, str], str]:
    """Return the BibTeX keys of sources, and the text of a ``.bib`` file with each source once.

    Args:
        sources: pairs of a source and its title, as in :func:`entry`.
    """
    keys: dict[str, str] = {}
    texts: dict[str, str] = {}
    for source, title in sources:
        keys[source], text = entry(source, title)
        texts[keys[source]] = text
    return keys, "\n\n".join(texts[key] for key in sorted(texts)) + "\n"
