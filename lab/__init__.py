"""The multi-token-prediction ablation lab: when and why does predicting n tokens beat predicting one?"""

__version__ = "0.1.0"
