from .auto import AutoLinearSolver as AutoLinearSolver
from .cg import CG as CG
from .neumann import Neumann as Neumann
from .normal import Normal as Normal
from .qr import QR as QR
from .svd import SVD as SVD
