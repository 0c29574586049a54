"""The commands: what each does, and what a person types first."""

from typing import NamedTuple


class About(NamedTuple):
    """A command in a sentence, and examples: arguments, each with what they do."""

    does: str
    examples: tuple[tuple[str, str], ...]
    more: str = ""


COMMANDS = {
    "train": About(
        "Train a score-based generative model; an existing run is resumed.",
        (
            ("", "a VP SDE on the digits that come along: minutes on a laptop"),
            ("sde=ve data=two_moons run=moons", "another process, another data set, a name for the run"),
            ("data=image_folder data.path=photos data.image_size=64", "pictures of your own"),
            ("resume=moons trainer.steps=8000", "go on with a run"),
            ("sde=vp,ve,subvp --multirun", "one run for each"),
        ),
    ),
    "sample": About(
        "Draw samples from a trained run.",
        (
            ("", "64 from the newest run"),
            ("run=moons num_samples=2000 sampler.nfe=10", "more of them, in 10 network calls each"),
            ("sampler=auto", "measure first which sampler suits this network"),
            ("sampler=pc sampler.steps=200", "predictor-corrector; sampler=NAME is any other"),
            ("run=clothes label=Trouser guidance=cfg", "one class, with guidance"),
            ("task=inpaint truth=digit.png mask=mask.png", "what a measurement leaves open"),
        ),
        "sde=... samples the trained network under another formulation.",
    ),
    "evaluate": About(
        "Likelihood of held-out data, and distances of samples from it.",
        (
            ("", "the newest run"),
            ("run=moons num_samples=2000 likelihood=none", "distances alone"),
            ("metrics=[] likelihood=both", "likelihoods alone: by the flow, and the variational bound"),
            ("task=inpaint mask=mask.png", "whether posteriors are calibrated"),
        ),
        "sde=... evaluates the trained network under another formulation.",
    ),
    "compare": About(
        "Compare formulations, samplers and budgets, and write one report.",
        (
            ("experiment=oracle_2d", "every solver on an exact score: a minute or two"),
            ("experiment=three_formulations_digits", "NCSN, DDPM and score SDEs on one network: some 20 minutes"),
        ),
        "Your own experiments: --config-dir FOLDER, with FOLDER/experiment/NAME.yaml.",
    ),
    "report": About(
        "One table of several runs: CSV, Markdown, LaTeX and HTML.",
        (("", "all runs"), ("runs=[first,second]", "these")),
    ),
    "import_weights": About(
        "Make a run of somebody else's weights; nothing in the file is executed.",
        (
            ("from=diffusers:FOLDER run=theirs data=null", "a network of another library"),
            ("weights=model.pt run=mine sde=ddpm network=unet", "weights of a network of ours"),
        ),
    ),
}
#: What the groups are.
GROUP_WORDS = {
    "sde": "how data become noise",
    "data": "what is learned, or was",
    "network": "what learns it",
    "parameterization": "what the network predicts",
    "objective": "what training minimises",
    "trainer": "how a run is trained",
    "logger": "where metrics go",
    "experiment": "settings that belong together, under a name",
    "sampler": "how noise becomes data",
    "corrector": "of a predictor-corrector: +corrector@sampler.corrector=Langevin",
    "grid": "the times of a sampler: +grid@sampler.grid=KarrasRho",
    "convention": "how a network is fed: +convention@parameterization.convention=Convention",
    "guidance": "what strengthens a label, or bounds samples",
    "features": "what distances are taken of",
}
