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
        "guessing, 1 is perfect. It is computed from histograms of 64 bins of the log-odds, at most about 0.003 off."
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
    "classwise_ece": "The calibration error of the images of each true class, averaged over the classes that occur.",
    "brier": (
        "The squared distance between the predicted probabilities and the truth, summed over the classes: 0 is "
        "perfect, 2 is certain and wrong."
    ),
}

STATUSES = {
    "accepted": ("●", "took part", "its update was averaged into the model"),
    "late": ("L", "late", "its update came after the deadline"),
    "error": ("E", "error", "the site reported an error"),
    "quarantined": ("Q", "quarantined", "its update was refused by the checks"),
    "revoked": ("R", "revoked", "it was taken from the list of sites"),
    "dormant": ("D", "dormant", "not waited for, after missing several rounds in a row"),
    "absent": ("·", "absent", "not connected, or not asked"),
}
UNKNOWN_STATUS = ("?", "other", "a status that this page does not know")


def label_figure(key: str) -> str:
    """Return the name of a figure; a key that is not known stands for itself."""
    return LABELS.get(key, key.replace("_", " "))


def name_direction(better: str) -> str:
    """Return whether a figure is better when it is high (``up``) or low (``down``), in words."""
    return "higher is better" if better == "up" else "lower is better"


def count(number: int, noun: str) -> str:
    """Return for example ``1 site`` or ``2,000 sites``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
