"""Names and explanations of the figures, in the words of the page."""

LABELS = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "auc": "Macro AUC",
    "sensitivity": "Mean sensitivity",
    "specificity": "Mean specificity",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
    "ece": "Expected calibration error (ECE)",
    "mce": "Maximum calibration error (MCE)",
    "classwise_ece": "Class-wise calibration error",
    "brier": "Brier score",
}

HEADLINE = ("balanced_accuracy", "accuracy", "macro_f1", "auc", "specificity", "kappa", "mcc", "ece", "brier")

SUBSET_FIGURES = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "auc": "Macro AUC",
    "ece": "ECE",
    "brier": "Brier",
}
"""Columns of a table with a row for each site, or for each group."""
LIKE = dict.fromkeys(("macro_f1", "auc"), "balanced_accuracy")
"""Figures that are over the same classes as another one, in such a table."""
SAME_CLASSES = " Where balanced accuracy names the classes that it is over, macro F1 and macro AUC are over the same."

EXPLANATIONS = {
    "balanced_accuracy": (
        "The share of images recognised, computed for each class and averaged over the classes that occur. Rare "
        "classes count as much as frequent ones. Guessing gives one over the number of classes."
    ),
    "accuracy": "The share of all images given the right class. Frequent classes dominate it.",
    "macro_f1": (
        "F1 is the harmonic mean of precision and sensitivity of one class; macro F1 averages it over all classes. "
        "A class that is never predicted counts as 0."
    ),
    "auc": (
        "The chance that an image of a class gets a higher score for that class than an image of another class; 0.5 is "
        "guessing, 1 is perfect. Of one site the images themselves are compared, where it tells that. Of several sites "
        "that tell histograms of the scores, all images are compared with all others, as exactly as 64 bins of the "
        "log-odds allow; it is shown only if no class can be more than 0.05 off for that. Else it is made of the "
        "sites' own areas, by their numbers of pairs: then only images of the same site are compared (within sites), "
        "and that scores at one site are higher than at another does not count."
    ),
    "sensitivity": "The share of a class's images that are recognised as that class (also called recall).",
    "specificity": "The share of images of all other classes that are rightly not given this class.",
    "macro_precision": "The share of images given a class that truly have it, averaged over all classes.",
    "macro_recall": "Sensitivity averaged over all classes; an absent class counts as 0.",
    "kappa": "Agreement with the true classes beyond what the class frequencies give by chance; 0 is chance, 1 is "
    "perfect.",
    "mcc": "Correlation between true and predicted classes, from -1 to 1; 0 is chance.",
    "ece": (
        "How far the stated confidence is from the share of right answers, averaged over 15 equal bins of "
        "confidence by the number of images in each. 0 is perfect."
    ),
    "mce": "The same distance in the worst of the 15 bins.",
    "classwise_ece": (
        "Whether a class gets a probability of 20 % for images of which 20 % are of it: the distance in each bin of "
        "the class's probability, over all images, averaged over the classes. 0 is perfect."
    ),
    "brier": (
        "The squared distance between the predicted probabilities and the truth, summed over the classes: 0 is "
        "perfect, 2 is certain and wrong."
    ),
}

LABELS |= {
    "quadratic_kappa": "Quadratic weighted kappa",
    "mean_absolute_error": "Mean absolute error in steps",
    "beyond_one_step": "More than one step off",
}
EXPLANATIONS |= {
    "quadratic_kappa": (
        "Agreement with the true grades beyond what the frequencies give by chance, in which an answer counts against "
        "the model by the square of the number of steps that it is off; 0 is chance, 1 is perfect."
    ),
    "mean_absolute_error": "How many steps the answers are off on average; 0 is perfect.",
    "beyond_one_step": "The share of images whose answer is no neighbour of the true grade, nor the grade itself.",
}

MERGED_EXPLANATIONS = {
    "ece": (
        "How far the stated confidence is from the share of right answers, averaged over bins of confidence by the "
        "number of images in each. Each site puts neighbouring ones of 15 equal bins together until each holds enough "
        "{ids}. 0 is perfect."
    ),
    "mce": "The same distance in the worst of these bins.",
}
"""Where sites have thresholds."""

_COMPARED = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "macro AUC",
}
LABELS |= {f"worst_group_{key}": f"Worst group's {name}" for key, name in _COMPARED.items()}
LABELS |= {f"gap_{key}": f"Gap in {name}" for key, name in _COMPARED.items()}
LABELS |= {f"std_{key}": f"Spread of {name}" for key, name in _COMPARED.items()}
LABELS |= {f"es_{key}": f"Equity-scaled {name}" for key, name in _COMPARED.items()}
LABELS |= {
    "demographic_parity_difference": "Demographic parity difference",
    "demographic_parity_ratio": "Demographic parity ratio",
    "equal_opportunity_difference": "Equal opportunity difference",
    "equalized_odds_difference": "Equalised odds difference",
    "eopp0": "Sum of specificity gaps (EOpp0)",
    "eopp1": "Sum of sensitivity gaps (EOpp1)",
    "eodd": "Sum of signed gaps (EOdd)",
    "pqd": "Predictive quality disparity (PQD)",
    "dpm": "Demographic parity (DPM)",
    "eom": "Equality of opportunity (EOM)",
    "worst_class_recall": "Sensitivity of the worst class",
    "class_recall_gap": "Gap in sensitivity between classes",
    "class_auc_std": "Spread of AUC between classes",
    "gap_ece": "Gap in calibration error",
    "class_sensitivity_gap": "Largest gap of one class",
}

EXPLANATIONS |= {
    f"worst_group_{key}": f"The {name} of the group in which it is lowest." for key, name in _COMPARED.items()
}
EXPLANATIONS |= {
    f"gap_{key}": f"The {name} of the best group minus that of the worst; 0 is no gap."
    for key, name in _COMPARED.items()
}
EXPLANATIONS |= {
    f"std_{key}": f"The standard deviation of the groups' {name}; 0 is no spread." for key, name in _COMPARED.items()
}
EXPLANATIONS |= {
    f"es_{key}": (
        f"The {name} of all images, divided by 1 plus the sum of the distances of the groups from it. It rewards a "
        "high figure and small distances."
    )
    for key, name in _COMPARED.items()
}
EXPLANATIONS |= {
    "demographic_parity_difference": (
        "How much more often one group is given a class than another, whether rightly or not; the worst class, and the "
        "mean over the classes. Groups with truly different diseases differ here without any fault of the model."
    ),
    "demographic_parity_ratio": "The same as the lowest rate over the highest; 1 is no gap.",
    "equal_opportunity_difference": (
        "The gap between groups in the share of a class's images that are recognised; the worst class, and the mean."
    ),
    "equalized_odds_difference": (
        "The larger of that gap and the gap in the share of other images wrongly given the class; the worst class, and "
        "the mean."
    ),
    "eopp0": "The gaps in specificity between two groups, added up over the classes; of more groups the worst pair.",
    "eopp1": "The gaps in sensitivity between two groups, added up over the classes; of more groups the worst pair.",
    "eodd": (
        "Of each class the gap in sensitivity plus the gap in the rate of false alarms, each with its sign, "
        "between the same two groups; the sizes of these sums, added up over the classes; of more groups the worst "
        "pair. Where a group has more hits and fewer false alarms, the two gaps have opposite signs and cancel: it "
        "can be smaller than either sum of gaps."
    ),
    "pqd": "The lowest accuracy of a group over the highest; 1 is no gap.",
    "dpm": "The lowest rate at which a group is given a class over the highest, averaged over classes; 1 is no gap.",
    "eom": "The lowest sensitivity of a group over the highest, averaged over the classes; 1 is no gap.",
    "worst_class_recall": "The sensitivity of the class that is recognised least often, all groups together.",
    "class_recall_gap": "The sensitivity of the best class minus that of the worst, all groups together.",
    "class_auc_std": "The standard deviation of the classes' AUC, all groups together.",
    "gap_ece": "The calibration error of the worst group minus that of the best.",
    "class_sensitivity_gap": (
        "The gap in sensitivity in the class, and between the two groups, where it is largest for the number of "
        "images: a failure in one class is not averaged away."
    ),
}

MODEL_NAMES = {
    "federated": "Federated",
    "batch_norm": "BatchNorm-personalised",
    "fine_tuned": "Fine-tuned",
    "local": "Local-only",
}
MODEL_EXPLANATIONS = {
    "federated": "the model of this report, as it is released",
    "batch_norm": "the same model with BatchNorm's statistics taken anew from the site's training images",
    "fine_tuned": "the same model, trained on at the site for at most one round's budget",
    "local": "the same network, trained with the same budget on the site's own images alone",
}
VERDICTS = {
    "worse": "worse than local-only",
    "better": "better than local-only",
    "undecided": "undecided",
    "unknown": "not known",
}
ALARM_KINDS = {"fall": "A figure fell", "coverage": "No longer covered"}


def label_figure(key: str) -> str:
    """Return the name of a figure; a key that is not known stands for itself, without anything but letters."""
    return LABELS.get(key, "".join(letter if letter.isalnum() else " " for letter in key))


def label_attribute(attribute: str) -> str:
    """Return the name of an attribute in words; crossings with a multiplication sign."""
    return attribute.replace(" x ", " × ").replace("_", " ")


def head_attribute(attribute: str) -> str:
    """Return the name of an attribute in words with a capital, to begin a line with."""
    label = label_attribute(attribute)
    return label[:1].upper() + label[1:]


def label_rule(rule: str) -> str:
    """Return in words by which figure a round was chosen."""
    label = label_figure(rule)
    return label if label.startswith("Equity") or rule == "auc" else label[:1].lower() + label[1:]


def name_direction(better: str) -> str:
    """Return whether a figure is better when it is high (``up``) or low (``down``), in words."""
    return "higher is better" if better == "up" else "lower is better"


def count(number: int, noun: str) -> str:
    """Return for example ``1 site`` or ``2,000 sites``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
