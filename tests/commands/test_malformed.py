"""Command lines that people get wrong, in one table: each is answered by one sentence and its code, before any work.

What the sentence says is tested in `test_bad_input.py`; here it is that there is one, and nothing else.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sde_gen.compare import main as compare
from tests.commands.helpers import TINY, Command

#: Exit code, command, arguments. `good.csv`, `bad/`, `empty`, `file`, a folder `pictures` and a run `tiny` are there.
TABLE = """
2 train sde=vpp
2 train sde=
2 train sde=VP2
2 train sde=null
2 train sde=[vp,ve]
2 train sde={a:1}
2 train sde=sde_gen.VP
2 train sde=../vp
2 train sde.beta_min=
2 train sde.beta_min=abc
2 train sde.beta_min=nan
2 train sde.beta_min=-inf
2 train sde.beta_min=inf
2 train sde.beta_min=-0.1
2 train sde.beta_min=1e400
2 train sde.beta_min=[0.1]
2 train sde.beta_min={a:1}
2 train sde.beta_min=true
2 train sde.beta_min=0,1
2 train sde.beta_min=21
2 train sde.beta_max=0
2 train sde.beta_mn=1
2 train sde.betamin=1
2 train sde.sigma_min=1
2 train sde=ve sde.beta_min=1
2 train sde=ve sde.sigma_min=0
2 train sde=ve sde.sigma_min=-1
2 train sde=ve sde.sigma_min=1e9
2 train sde=ve sde.sigma_max=nan
2 train sde=edm sde.sigma_data=x
2 train sde=ddpm sde.steps=0
2 train sde=ddpm sde.steps=-5
2 train sde=ddpm sde.steps=1.5
2 train sde=ddpm sde.steps=many
2 train sde=ddpm sde.schedule=linearr
2 train sde=ddpm sde.schedule=3
2 train sde=ncsn sde.levels=0
2 train sde=ncsn sde.levels=1
2 train sde=ncsn sde.levels=ten
2 train sde=ncsn sde.sigma_max=0
2 train ~sde
2 train +sde=ve
2 train ++sde=ve2
2 train +sde.gamma=1
2 train ++sde.gamma=1
2 train sde._target_=os.system
2 train sde._target_=builtins.eval
2 train sde._target_=sde_gen.Nothing
2 train sde._target_=sde_gen.DDIM
2 train sde._target_=3
2 train sde._args_=[1]
2 train sde._partial_=true
2 train data=digit
2 train data=
2 train data=null
2 train data=good.csv
2 train data=mixtur
2 train data.n=5
2 train data=mixture data.n=0
2 train data=mixture data.n=-3
2 train data=mixture data.n=1.5
2 train data=mixture data.n=ten
2 train data=mixture data.n=1e30
2 train data=mixture data.weights=[1,-1]
2 train data=mixture data.means=1
2 train data=mixture data.seed=-1
2 train data=two_moons data.noise=-1
2 train data=two_moons data.noise=nan
2 train data=csv_file
66 train data=csv_file data.path=
66 train data=csv_file data.path=missing.csv
66 train data=csv_file data.path=missing/good.csv
66 train data=csv_file data.path=good.csv/x
65 train data=csv_file data.path=empty
65 train data=csv_file data.path=bad/text.csv
65 train data=csv_file data.path=bad/ragged.csv
65 train data=csv_file data.path=bad/nan.csv
65 train data=csv_file data.path=bad/one.csv
65 train data=csv_file data.path=bad/bytes
2 train data=csv_file data.path=good.csv data.label=colour
2 train data=csv_file data.path=good.csv data.label=9
2 train data=csv_file data.path=good.csv data.label=-9
2 train data=csv_file data.path=good.csv data.delimiter=
2 train data=csv_file data.path=good.csv data.delimiter=abc
2 train data=csv_file data.path=good.csv data.header=maybe
2 train data=csv_file data.path=good.csv data.held_out=0
2 train data=csv_file data.path=good.csv data.held_out=1.5
2 train data=csv_file data.path=good.csv data.held_out=-1
2 train data=csv_file data.path=good.csv data.held_out=40
2 train data=csv_file data.path=good.csv data.held_out=nan
2 train data=csv_file data.path=good.csv data.seed=x
2 train data=csv_file data.path=good.csv data.labels=c
2 train data=csv_file data.path=good.csv data.label_column=c
2 train data=csv_file data.pth=good.csv
2 train data=csv_file data.path=good.csv network=unet
2 train data=csv_file data.path=good.csv class_conditional=true
2 train data=array_file
66 train data=array_file data.path=missing.npy
65 train data=array_file data.path=empty
65 train data=array_file data.path=bad/bytes
65 train data=array_file data.path=bad/cut.npz
65 train data=array_file data.path=bad/object.npy
65 train data=array_file data.path=bad/scalar.npy
65 train data=array_file data.path=bad/nan.npy
65 train data=array_file data.path=bad/one.npy
65 train data=array_file data.path=bad/text.npy
65 train data=array_file data.path=bad/complex.npy
2 train data=array_file data.path=bad/two.npz
2 train data=array_file data.path=bad/two.npz data.key=c
2 train data=array_file data.path=bad/pictures.npy data.layout=xyz
2 train data=array_file data.path=bad/pictures.npy data.low=1 data.high=0
2 train data=image_folder
66 train data=image_folder data.path=missing
66 train data=image_folder data.path=file
65 train data=image_folder data.path=nothing
65 train data=image_folder data.path=broken
65 train data=image_folder data.path=sizes
2 train data=image_folder data.path=pictures data.channels=2
2 train data=image_folder data.path=pictures data.image_size=0
2 train data=image_folder data.path=pictures data.image_size=big
66 train data=fashion_mnist data.root=missing
2 train data=fashion_mnist data.limit=0
2 train network=une
2 train network=null
2 train network=auto network.hidden=8
2 train network=mlp
2 train network=mlp data=mixture network.hidden=0
2 train network=mlp data=mixture network.hidden=-8
2 train network=mlp data=mixture network.hidden=8.5
2 train network=mlp data=mixture network.layers=-1
2 train network=mlp data=mixture network.hiden=8
2 train network=mlp data=mixture network.width=8
2 train network=unet network.width=0
2 train network=unet network.width=x
2 train network=unet network.multipliers=[]
2 train network=unet network.multipliers=3
2 train network=unet network.multipliers=[1,0]
2 train network=unet network.dropout=2
2 train network=unet network.blocks=0
2 train network._target_=torch.nn.Linear
2 train network._target_=mine.Net
2 train parameterization=epsilon
2 train parameterization=null
2 train parameterization=edm parameterization.sigma_data=-1
2 train objective=mse
2 train objective.label_dropout=0.1
2 train objective.label_dropout=2
2 train objective.times_law=nodes
2 train objective.times_law=x
2 train objective.weighting=x
2 train objective=min-snr objective.weighting.gamma=-1
2 train class_conditional=maybe
2 train class_conditional=true data=checkerboard
2 train trainer.steps=0
2 train trainer.steps=-1
2 train trainer.steps=1.5
2 train trainer.steps=abc
2 train trainer.steps=
2 train trainer.steps=null
2 train trainer.step=5
2 train trainer.epochs=5
2 train trainer.lr=0
2 train trainer.lr=1e-4
2 train trainer.batch=4
2 train trainer.batch_size=0
2 train trainer.batch_size=1e3x
2 train trainer.learning_rate=-1
2 train trainer.learning_rate=fast
2 train trainer.learning_rate=nan
2 train trainer.ema_decay=2
2 train trainer.warmup_steps=-1
2 train trainer.schedule=step
2 train trainer.gradient_clip=-1
2 train trainer.max_seconds=-1
2 train trainer.checkpoint_every=-5
2 train trainer.precision=fp8
2 train trainer.compile=maybe
2 train trainer=x
2 train logger=wandbb
2 train steps=5
2 train lr=1
2 train epochs=3
2 train batch_size=3
2 train seed=-1
2 train seed=abc
2 train seed=1.5
2 train seed=18446744073709551616
2 train device=tpu
2 train device=cuda:99
2 train device=cuda:x
2 train device=
2 train timeout=-1
2 train run=a/b
2 train run=../x
2 train run=..
2 train run=
2 train run=a resume=b
66 train resume=missing
66 train resume=./missing
2 train resume=tiny trainer.batch_size=0
2 train resume=tiny trainr.steps=5
73 train runs_dir=file/runs
2 train trust=os
2 train experiment=missing
2 train sampler=ddim
2 train --confg-dir x
2 train --config-dir missing
2 train --foo
2 train =5
2 train x
2 train trainer
2 train trainer.steps
2 train trainer.steps==5
2 train a=b=c
2 train [
2 train 'sde=vp
2 train sde=vp}
2 train sde=${x}
2 train seed=${oc.env:HOME}
2 train seed=${missing}
2 train +x=1
2 train ++x=1
2 train +trainer.x=1
2 train ~trainer.steps2
2 train hydra.job.name
2 sample run=tiny sampler=pcc
2 sample run=tiny sampler=null
2 sample run=tiny sampler=
2 sample run=tiny sampler=ddim sampler.steps=0
2 sample run=tiny sampler=ddim sampler.steps=-1
2 sample run=tiny sampler=ddim sampler.steps=1.5
2 sample run=tiny sampler=ddim sampler.steps=x
2 sample run=tiny sampler.stps=5
2 sample run=tiny sampler=ddim sampler.eta=-1
2 sample run=tiny sampler=ddim sampler.eta=nan
2 sample run=tiny sampler=ddim sampler.grid=karass
2 sample run=tiny sampler=ancestral sampler.variance=huge
2 sample run=tiny sampler=auto sampler.nfe=0
2 sample run=tiny sampler=ode sampler.rtol=-1
2 sample run=tiny sampler._target_=os.system
2 sample run=tiny sde=vpp
2 sample run=tiny sde.beta_min=1
2 sample run=tiny num_samples=0
2 sample run=tiny num_samples=-1
2 sample run=tiny num_samples=ten
2 sample run=tiny num_samples=1.5
2 sample run=tiny n=5
2 sample run=tiny samples=5
2 sample run=tiny label=1
2 sample run=tiny label=cycle
2 sample run=tiny label=[0,1]
2 sample run=tiny weights=best
2 sample run=tiny chunk=0
2 sample run=tiny seed=-1
2 sample run=tiny seed=x
2 sample run=tiny device=tpu
2 sample run=tiny metrics=maybe
2 sample run=tiny animation=2
2 sample run=tiny trainer.steps=5
2 sample run=tiny checkpoint=runs/tiny
2 sample run=a/b
66 sample run=missing
66 sample run=7
66 sample checkpoint=missing
66 sample checkpoint=file
66 sample checkpoint=nothing
66 sample runs_dir=nothing
66 sample runs_dir=missing
65 sample checkpoint=damaged
73 sample run=tiny out=file/x
73 sample run=tiny out=file
66 sample run=tiny data=csv_file data.path=missing.csv
65 sample run=tiny data=csv_file data.path=good.csv
2 sample run=tiny data=csvv
2 evaluate run=tiny metrics=[fid]
2 evaluate run=tiny metrics=[]  likelihood=none
2 evaluate run=tiny likelihood=exact
2 evaluate run=tiny nll.rtol=0
2 evaluate run=tiny nll.samples=0
2 evaluate run=tiny nll.steps=x
2 evaluate run=tiny nll.probe=gauss
2 evaluate run=tiny num_samples=1
2 evaluate run=tiny compared=1
2 evaluate run=tiny features=incption
66 evaluate run=tiny samples=missing
65 evaluate run=tiny samples=empty
66 evaluate run=missing
73 evaluate run=tiny out=file/x
2 import_weights
66 import_weights data=mixture network=mlp weights=
66 import_weights data=mixture network=mlp weights=missing.pt
65 import_weights data=mixture network=mlp weights=empty
65 import_weights data=mixture network=mlp weights=bad/bytes
65 import_weights data=mixture network=mlp weights=bad/two.npz
66 report runs=[missing]
66 report runs_dir=missing
66 report runs_dir=nothing
2 report runs=tiny
2 report run=tiny
73 report runs=[tiny] out=file/x
2 compare experiment=missing
2 compare budgets=0
2 compare budgets=[0]
2 compare budgets=[x]
2 compare seeds=[]
2 compare seeds=[-1]
2 compare num_samples=0
2 compare workers=0
2 compare workers=many
2 compare part=1
2 compare parts=2
2 compare part=3 parts=2
2 compare mode=x
2 compare samplers=[ddimm]
2 compare sdes=[vp]
2 compare data=none
2 compare nme=x
66 compare spec=missing.json
65 compare spec=empty
65 compare spec=bad/bytes
73 compare out=file/x
"""

ROWS = [line.split(maxsplit=2) for line in TABLE.strip().splitlines()]


def prepare(command: Command) -> None:
    Path("good.csv").write_text("a,b\n" + "".join(f"{i},{i * i % 7}\n" for i in range(30)))
    for name in ("bad", "nothing", "broken", "sizes", "pictures", "damaged"):
        Path(name).mkdir()
    Path("empty").touch()
    Path("file").write_text("x")
    Path("bad/text.csv").write_text("a,b\n1,x\n2,3\n")
    Path("bad/ragged.csv").write_text("a,b\n1,2\n3\n")
    Path("bad/nan.csv").write_text("a,b\n1,2\n3,nan\n")
    Path("bad/one.csv").write_text("a,b\n1,2\n")
    Path("bad/bytes").write_bytes(bytes(range(256)))
    Path("broken/x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    for name, size in (("sizes/a.png", 4), ("sizes/b.png", 5), ("pictures/a.png", 4), ("pictures/b.png", 4)):
        Image.new("L", (size, size)).save(name)
    np.save("bad/object.npy", np.array([{}, {}], dtype=object))
    np.save("bad/scalar.npy", np.array(3.0))
    np.save("bad/nan.npy", np.array([[1.0, np.nan], [1.0, 2.0]]))
    np.save("bad/one.npy", np.ones((1, 2)))
    np.save("bad/text.npy", np.array(["a", "b"]))
    np.save("bad/complex.npy", np.ones((9, 2), complex))
    np.save("bad/pictures.npy", np.zeros((9, 4, 4), np.uint8))
    np.savez("bad/two.npz", a=np.eye(9), b=np.eye(9))
    Path("bad/cut.npz").write_bytes(Path("bad/two.npz").read_bytes()[:200])
    Path("damaged/manifest.json").write_text("{")
    assert command("train", *TINY, "run=tiny").code == 0


def test_the_table_is_long_enough_and_says_nothing_twice() -> None:
    assert len(ROWS) == len({tuple(row) for row in ROWS}) >= 242


@pytest.mark.parametrize("part", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 6))])
def test_each_is_answered_by_one_sentence_and_its_code(
    part: int, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(command)
    before = sorted(str(path) for path in Path().rglob("*"))
    wrong = []
    for code, name, *rest in ROWS[part::6]:
        arguments = rest[0].split() if rest else []
        if name == "compare":
            capsys.readouterr()
            got, err = compare(arguments), capsys.readouterr().err
        else:
            got, _, err = command(name, *arguments)
        if got != int(code) or not re.fullmatch(r"error: \S[^\n]{10,1000}\n", err):
            wrong.append(f"{got} instead of {code}: {name} {' '.join(arguments)}\n    {err[:300]}")
    assert not wrong, f"{len(wrong)} of {len(ROWS)}\n" + "\n".join(wrong)
    assert sorted(str(path) for path in Path().rglob("*")) == before, "a refusal leaves nothing behind"
