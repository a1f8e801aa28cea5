"""The demonstration: a small CNN on scikit-learn's digits, grown under gates."""
