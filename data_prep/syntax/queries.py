"""What queries look for in the syntax tree of each language; structure by one query, so that a tree is walked once.

Captures: @comment; @macro (text that the grammar of C does not look into); @body (of a function with a name) with @function (what
its signature begins with: `template`, `export` or the name it is bound to; several patterns may match one body, the outermost
counts). An anonymous function belongs to what stands around it.
"""

from __future__ import annotations

_ECMASCRIPT = """
(comment) @comment
(function_declaration body: (_) @body) @function
(generator_function_declaration body: (_) @body) @function
(method_definition body: (_) @body) @function
(variable_declarator value: [
  (arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)]) @function
([(lexical_declaration . (variable_declarator value: [
    (arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)]) .)
  (variable_declaration . (variable_declarator value: [
    (arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)]) .)] @function)
(assignment_expression right: [
  (arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)]) @function
(pair value: [
  (arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)]) @function
(export_statement declaration: [
  (function_declaration body: (_) @body) (generator_function_declaration body: (_) @body)
  (lexical_declaration . (variable_declarator value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)]) .)
  ]) @function
(export_statement value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)]) @function
"""

_JAVASCRIPT = (
    _ECMASCRIPT
    + """
(field_definition value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)]) @function
"""
)

_TYPESCRIPT = (
    _ECMASCRIPT
    + """
(public_field_definition value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)]) @function
"""
)

_JAVA = """
[(line_comment) (block_comment)] @comment
(method_declaration body: (block) @body) @function
(constructor_declaration body: (constructor_body) @body) @function
(compact_constructor_declaration body: (block) @body) @function
"""

_C = """
(comment) @comment
(preproc_arg) @macro
(function_definition body: (compound_statement) @body) @function
"""

_CPP = """
(comment) @comment
(preproc_arg) @macro
(function_definition body: (compound_statement) @body) @function
(function_definition (try_statement) @body) @function
(template_declaration (function_definition body: (compound_statement) @body)) @function
"""

STRUCTURE: dict[str, str] = {
    "javascript": _JAVASCRIPT,
    "typescript": _TYPESCRIPT,
    "tsx": _TYPESCRIPT,
    "java": _JAVA,
    "c": _C,
    "cpp": _CPP,
}
"""Grammar → its query; Python, Go and Rust need none (`keywords`)."""

NAMES: dict[str, str] = {
    "python": "(identifier) @name",
    "javascript": """[(identifier) (property_identifier) (private_property_identifier) (shorthand_property_identifier)
        (shorthand_property_identifier_pattern) (statement_identifier)] @name""",
    "typescript": """[(identifier) (property_identifier) (private_property_identifier) (shorthand_property_identifier)
        (shorthand_property_identifier_pattern) (statement_identifier) (type_identifier)] @name""",
    "java": "[(identifier) (type_identifier)] @name",
    "go": "[(identifier) (field_identifier) (package_identifier) (type_identifier) (label_name)] @name",
    "rust": "[(identifier) (field_identifier) (type_identifier) (shorthand_field_identifier)] @name",
    "c": "[(identifier) (field_identifier) (type_identifier) (statement_identifier)] @name",
    "cpp": "[(identifier) (field_identifier) (type_identifier) (statement_identifier) (namespace_identifier)] @name",
}
"""Grammar → its identifiers, for the control that scrambles them."""
NAMES["tsx"] = NAMES["typescript"]

VERBATIM: dict[str, str] = {
    "python": "[(string) (comment)] @text",
    "javascript": "[(template_string) (string) (comment) (jsx_text)] @text",
    "typescript": "[(template_string) (string) (comment)] @text",
    "tsx": "[(template_string) (string) (comment) (jsx_text)] @text",
    "java": "[(string_literal) (line_comment) (block_comment)] @text",
    "go": "[(raw_string_literal) (interpreted_string_literal) (comment)] @text",
    "rust": "[(string_literal) (raw_string_literal) (line_comment) (block_comment)] @text",
    "c": "[(string_literal) (comment) (preproc_arg)] @text",
    "cpp": "[(string_literal) (raw_string_literal) (comment) (preproc_arg)] @text",
}
"""Grammar → what may hold line ends and brackets that are no layout and no code."""
