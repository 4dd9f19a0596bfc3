"""One model for many targets: multi-task networks searched with Optuna, verified, and served with BentoML."""
