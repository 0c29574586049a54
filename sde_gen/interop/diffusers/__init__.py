"""Networks of Hugging Face's diffusers as models, and models as its pipelines; `pip install 'sde_gen[diffusers]'`.

    model = sg.interop.diffusers.from_pretrained("folder or name on the hub")
    x = sg.interop.diffusers.own_sampler(model, steps=50)(model, (4, *model.shape), seed=0).x
    sg.interop.diffusers.save_pretrained(model, "folder")       # DDIMPipeline.from_pretrained("folder")

library                 the door to diffusers: closed lists of its classes, the sizes that are believed
wrapper                 its networks, called as each wants it
schedules               what a scheduler's settings say about a network
own_grid                the times and the rule of a scheduler
folders                 what its folders hold
export, exported        models for its pipelines
"""

from sde_gen.interop.diffusers.export import save_pretrained, to_pipeline
from sde_gen.interop.diffusers.folders import from_modules, from_pretrained
from sde_gen.interop.diffusers.own_grid import own_sampler
from sde_gen.interop.diffusers.wrapper import Network

__all__ = [
    "Network",
    "from_modules",
    "from_pretrained",
    "own_sampler",
    "save_pretrained",
    "to_pipeline",
]
