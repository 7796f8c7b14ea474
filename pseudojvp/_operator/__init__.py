from .as_operator import as_operator as as_operator
