"""What the commands do, one module each: `run(config)` takes settings, a mapping as Hydra composes it or by hand, and
returns its report.

    from sde_gen.jobs import sampling

    report = sampling.run({"run": "first", "sampler": {"_target_": "sde_gen.DDIM"}, "num_samples": 16})
"""
