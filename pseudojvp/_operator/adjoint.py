import lineax as lx

from .._base.structure import Structure


def is_complex(operator: lx.AbstractLinearOperator) -> bool:
    spaces = (operator.in_structure(), operator.out_structure())
    return Structure.of(spaces).is_complex


def adjoint(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    transpose = operator.transpose()
    return lx.conj(transpose) if is_complex(operator) else transpose
