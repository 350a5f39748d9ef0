"""From a suite's card to examples, and from answers to scores; only here is lmms-eval known."""
