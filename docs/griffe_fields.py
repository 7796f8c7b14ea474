"""Shows the fields of an `equinox.Module` as the parameters of its class.

An extension of griffe, which reads the package for mkdocstrings. It knows this of
classes decorated with `dataclass`; a module becomes one through its metaclass.
"""

import griffe


class FieldsAsParameters(griffe.Extension):
    def on_class_members(self, *, cls: griffe.Class, **_) -> None:
        fields = [
            attribute
            for attribute in cls.attributes.values()
            if attribute.annotation is not None and "property" not in attribute.labels
        ]
        if "__init__" in cls.members or not cls.bases:
            return
        parameters = griffe.Parameters(
            griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword),
            *(
                griffe.Parameter(
                    field.name,
                    annotation=field.annotation,
                    kind=griffe.ParameterKind.positional_or_keyword,
                    default=field.value,
                )
                for field in fields
            ),
        )
        cls.set_member("__init__", griffe.Function("__init__", parameters=parameters))
