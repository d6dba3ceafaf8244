"""The ablation: the method as controlled arms over seeds."""
