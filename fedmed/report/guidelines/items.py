"""Items of TRIPOD+AI (Collins et al. 2024) and CLAIM 2024 (Tejani et al. 2024) in our own words, by number.

Numbers and subjects were compared, item by item, with public transcriptions of both checklists; the publications
themselves were not at hand, and ``tripod_ai.md`` says so.

The third column names the answer of :mod:`fedmed.report.guidelines.answers`; an empty one is for people to give.
"""

from typing import NamedTuple


class Item(NamedTuple):
    """An item of a guideline."""

    number: str
    topic: str
    answer: str = ""


TRIPOD_AI = (
    Item("1", "Title: that a prediction model was developed or evaluated, for whom and what", "title"),
    Item("2", "Abstract"),
    Item("3a", "Health problem, purpose and intended users"),
    Item("3b", "Target population and place in care"),
    Item("3c", "Known health inequalities between groups"),
    Item("4", "Objectives: development, evaluation or both", "objective"),
    Item("5a", "Sources of the data of development and evaluation", "sources"),
    Item("5b", "Dates of the data"),
    Item("6a", "Setting, number and place of centres", "centres"),
    Item("6b", "Eligibility of participants"),
    Item("6c", "Treatments received"),
    Item("7", "Preparation of the data", "preparation"),
    Item("8a", "Outcome and how it was assessed", "outcome"),
    Item("8b", "Qualification of those who assessed the outcome"),
    Item("8c", "Blinding of the assessment of the outcome"),
    Item("9a", "Choice of predictors before the model was built", "predictors"),
    Item("9b", "Definition and measurement of predictors"),
    Item("9c", "Qualification of those who assessed predictors"),
    Item("10", "Sample size and its justification", "sample_size"),
    Item("11", "Missing data", "missing"),
    Item("12a", "How data was divided and used", "partitions"),
    Item("12b", "Handling of predictors in the analysis: scaling, transformations", "preparation"),
    Item("12c", "Type of model, how it was built, chosen and tuned", "model"),
    Item("12d", "How differences between clusters such as hospitals were handled and measured", "heterogeneity"),
    Item("12e", "Measures of performance", "measures"),
    Item("12f", "Updating after the evaluation, such as recalibration", "updating"),
    Item("12g", "How predictions were computed in the evaluation", "predictions"),
    Item("13", "Class imbalance: methods, and recalibration after them", "imbalance"),
    Item("14", "Fairness: what was done", "fairness"),
    Item("15", "Output of the model, thresholds and their reasons", "output"),
    Item("16", "Differences between development and evaluation data", "same_sites"),
    Item("17", "Ethical approval"),
    Item("18a", "Funding"),
    Item("18b", "Conflicts of interest"),
    Item("18c", "Protocol"),
    Item("18d", "Registration"),
    Item("18e", "Availability of data", "data_stay"),
    Item("18f", "Availability of code", "code"),
    Item("19", "Involvement of patients and the public"),
    Item("20a", "Flow of participants and their outcomes", "flow"),
    Item("20b", "Characteristics of participants, by setting", "characteristics"),
    Item("20c", "Comparison of development and evaluation data", "comparison"),
    Item("21", "Model development: participants and outcome events of each analysis", "events"),
    Item("22", "The full model, so that others can predict with it", "specification"),
    Item("23a", "Performance with intervals, also in subgroups", "performance"),
    Item("23b", "Differences of performance between clusters", "site_performance"),
    Item("24", "Results of updating", "updating"),
    Item("25", "Interpretation, fairness included"),
    Item("26", "Limitations", "limitations"),
    Item("27a", "Poor or missing input in use"),
    Item("27b", "Interaction and expertise that use needs"),
    Item("27c", "Next steps"),
)

CLAIM = (
    Item("1", "Title or abstract names the kind of AI", "model"),
    Item("2", "Structured summary"),
    Item("3", "Background and intended use"),
    Item("4", "Aims and hypotheses"),
    Item("5", "Prospective or retrospective"),
    Item("6", "Goal of the study", "objective"),
    Item("7", "Sources of data", "sources"),
    Item("8", "Inclusion and exclusion"),
    Item("9", "Preprocessing", "preparation"),
    Item("10", "Selection of subsets of the data, such as regions or slices"),
    Item("11", "De-identification", "deidentification"),
    Item("12", "Missing data", "missing"),
    Item("13", "Acquisition of the images"),
    Item("14", "Definition of the reference standard", "outcome"),
    Item("15", "Why this reference standard"),
    Item("16", "Source of the annotations, qualification of those who made them"),
    Item("17", "Annotation of the test set"),
    Item("18", "Variability between and within annotators"),
    Item("19", "Assignment to training, validation and test", "partitions"),
    Item("20", "Level at which parts are disjoint", "disjoint"),
    Item("21", "Intended size of the test data", "sample_size"),
    Item("22", "Description of the model", "model"),
    Item("23", "Software and hardware", "code"),
    Item("24", "Initial parameters", "initial"),
    Item("25", "Training", "training"),
    Item("26", "Choice of the final model", "choice"),
    Item("27", "Ensembles", "ensemble"),
    Item("28", "Measures of performance", "measures"),
    Item("29", "Statistical uncertainty", "uncertainty"),
    Item("30", "Robustness"),
    Item("31", "Explanations of single decisions"),
    Item("32", "Test on internal data", "performance"),
    Item("33", "Test on external data", "same_sites"),
    Item("34", "Registration of a trial"),
    Item("35", "Flow of cases: included and excluded", "flow"),
    Item("36", "Characteristics of each part", "characteristics"),
    Item("37", "Performance by part and subgroup", "parts_performance"),
    Item("38", "Estimates of accuracy with their precision", "performance"),
    Item("39", "Failure analysis", "failures"),
    Item("40", "Limitations", "limitations"),
    Item("41", "Implications for practice"),
    Item("42", "Full protocol"),
    Item("43", "Availability of software, model and data", "code"),
    Item("44", "Funding and the role of funders"),
)
