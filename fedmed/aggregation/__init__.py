"""From the sites' updates to the next global model: checks, exact averages and their weights."""

# Those with rules are named so that make_rule knows them.
from fedmed.aggregation import divergence_rule, extension, fair_rules, group_rules
from fedmed.aggregation.average import WeightedUpdate, average_updates, site_weights
from fedmed.aggregation.limits import Bounded, bound_weights, cap_weights, find_share_limit, shorten_updates
from fedmed.aggregation.norm_bounds import find_implausible_buffers, replace_counters
from fedmed.aggregation.quarantine import UpdateCheck, check_num_images, check_update, compare_norms
from fedmed.aggregation.rule import RoundUpdates, Rule, RuleState, Weights, make_rule
from fedmed.aggregation.server_step import GlobalModel, Moments, MomentStep, ServerStep, Values, make_step

__all__ = [
    "Bounded",
    "GlobalModel",
    "MomentStep",
    "Moments",
    "RoundUpdates",
    "Rule",
    "RuleState",
    "ServerStep",
    "UpdateCheck",
    "Values",
    "WeightedUpdate",
    "Weights",
    "average_updates",
    "bound_weights",
    "cap_weights",
    "check_num_images",
    "check_update",
    "compare_norms",
    "divergence_rule",
    "extension",
    "fair_rules",
    "find_implausible_buffers",
    "find_share_limit",
    "group_rules",
    "make_rule",
    "make_step",
    "replace_counters",
    "shorten_updates",
    "site_weights",
]
