"""Tokens to the tree of one file: recursive descent, the grammar rule above each function.

Precedence, loosest first: `or`; `and`; `== != < <= > >=` (do not chain); `& ^ |`; `<< >>`; `+ -`; `* / %`; prefix
`- ~ ! & comptime`; postfix calls, indices, fields, `.*`. A mistake is reported and parsing goes on after the
statement or declaration that holds it.
"""

from __future__ import annotations

from dataclasses import replace

from openwafer.wafer.csl import ast
from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.diagnostics import CslError, Diagnostics
from openwafer.wafer.csl.lexer import (
    BUILTIN,
    END,
    FLOAT,
    INT,
    KEYWORD,
    NAME,
    PUNCTUATION,
    STRING,
    Token,
    tokenize,
)  # fmt: skip
from openwafer.wafer.csl.source import Source

MAX_DEPTH = 200

_LEVELS = {
    "or": 1, "and": 2, "==": 3, "!=": 3, "<": 3, "<=": 3, ">": 3, ">=": 3, "&": 4, "^": 4, "|": 4, "<<": 5, ">>": 5,
    "+": 6, "-": 6, "*": 7, "/": 7, "%": 7,
}  # fmt: skip
_COMPARISON = 3
_ASSIGNMENTS = frozenset(("=", "+=", "-=", "*=", "/=", "%=", "<<=", ">>=", "&=", "|=", "^="))
_DECLARATIONS = frozenset(("const", "var", "param", "fn", "task", "comptime", "layout", "export", "extern"))


def parse_file(source: Source, source_id: int, diagnostics: Diagnostics) -> ast.File:
    """The tree of a file; mistakes go to `diagnostics`."""
    before = len(diagnostics.items)
    tokens = tokenize(source, source_id, diagnostics)
    spans = [item.span for item in diagnostics.items[before:] if item.span is not None]
    lines = frozenset(source.position(span.start)[0] for span in spans)
    return _Parser(tokens, source, source_id, diagnostics, lines).file()


class _Parser:
    def __init__(
        self, tokens: list[Token], source: Source, source_id: int, diagnostics: Diagnostics, damaged: frozenset[int]
    ) -> None:
        self.tokens = tokens
        self.at = 0
        self.source = source
        self.source_id = source_id
        self.diagnostics = diagnostics
        self.damaged = damaged
        """Lines with characters that make no token: what else is wrong there follows from them."""
        self.depth = 0

    def report(self, error: CslError) -> None:
        span = error.diagnostic.span
        if span is None or self.source.position(span.start)[0] not in self.damaged:
            self.diagnostics.report(error)

    # --- tokens -----------------------------------------------------------------------------------------------------

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def ahead(self, distance: int = 1) -> Token:
        return self.tokens[min(self.at + distance, len(self.tokens) - 1)]

    def span_from(self, start: int) -> Span:
        end = self.tokens[self.at - 1].end if self.at else start
        return Span(self.source_id, start, max(start, end))

    def span_of(self, token: Token) -> Span:
        return Span(self.source_id, token.start, token.end)

    def is_(self, text: str) -> bool:
        token = self.tokens[self.at]
        return token.text == text and (token.kind == PUNCTUATION or token.kind == KEYWORD)

    def take(self) -> Token:
        token = self.tokens[self.at]
        if token.kind != END:
            self.at += 1
        return token

    def accept(self, text: str) -> bool:
        if self.is_(text):
            self.at += 1
            return True
        return False

    def expect(self, text: str, context: str) -> Token:
        if self.is_(text):
            return self.take()
        found = self.token.text if self.token.kind == PUNCTUATION else ""
        hint = _HINTS.get((text, found), "") if text != ")" or "condition" in context else ""
        raise self.unexpected(f'expected "{text}" {context}', text in (";", ")", "]", "}") and not hint, hint)

    def unexpected(self, message: str, after: bool = False, hint: str = "") -> CslError:
        """An error at this token; `after`: what is missing belongs right after the token before."""
        token = self.token
        notes = (hint,) if hint else ()
        found = "the end of the file" if token.kind == END else f'"{_shown(token)}"'
        if after and self.at:
            end = self.tokens[self.at - 1].end
            return CslError(Span(self.source_id, max(0, end - 1), end), f"{message}, found {found}", *notes)
        span = Span(self.source_id, token.start, max(token.end, token.start + 1))
        return CslError(span, f"{message}, found {found}", *notes)

    def name(self, what: str) -> str:
        if self.token.kind == NAME:
            return self.take().text
        if self.token.kind == KEYWORD:
            raise self.unexpected(f"expected {what}; a keyword cannot be one")
        raise self.unexpected(f"expected {what}")

    # --- the file ---------------------------------------------------------------------------------------------------

    # file = declaration*
    def file(self) -> ast.File:
        declarations = []
        while self.token.kind != END:
            before = self.at
            try:
                declarations.append(self.declaration())
            except CslError as error:
                self.report(error)
                self.recover(_DECLARATIONS, before, top=True)
        return ast.File(declarations=tuple(declarations), span=Span(self.source_id, 0, self.token.end))

    def recover(self, starts: frozenset[str], before: int, top: bool) -> None:
        """Skip to where a statement or declaration may begin; braces opened since token `before` are closed first."""
        if self.at == before:
            self.take()
        symbols = [t.text for t in self.tokens[before : self.at] if t.kind == PUNCTUATION]
        depth = max(0, symbols.count("{") - symbols.count("}"))
        while self.token.kind != END:
            if depth == 0 and self.tokens[self.at - 1].text == ";":
                return
            begins = self.begins_declaration() or (depth == 0 and self.token.text in starts)
            if self.token.kind == KEYWORD and self.begins_line() and begins:
                return
            if self.is_("{"):
                depth += 1
            elif self.is_("}"):
                if depth == 0 and not top:
                    return
                depth -= 1
                if depth <= 0:
                    self.take()
                    over = self.begins_line() or self.begins_declaration() or (self.is_("}") and not top)
                    if over and self.token.text not in _GO_ON:
                        return
                    depth = 0
                    continue
            self.take()

    def begins_line(self) -> bool:
        start = self.token.start
        return not self.source.text[self.source.text.rfind("\n", 0, start) + 1 : start].strip()

    def begins_declaration(self) -> bool:
        """Whether here is what stands at top level only."""
        text, following = self.token.text, self.ahead()
        if self.token.kind != KEYWORD or text not in ("fn", "task", "param", "layout", "export", "extern"):
            return False
        return following.text == "{" if text == "layout" else following.kind in (NAME, KEYWORD)

    # declaration = param | variable | function | "comptime" block | "layout" block
    def declaration(self) -> ast.Decl:
        token = self.token
        if token.kind == KEYWORD:
            if token.text == "param":
                return self.param()
            if token.text == "layout":
                self.take()
                block = self.block("of the layout")
                return ast.LayoutBlock(block=block, span=self.span_from(token.start))
            if token.text == "comptime" and self.ahead().text == "{":
                self.take()
                block = self.block("of comptime code")
                return ast.ComptimeBlock(block=block, span=self.span_from(token.start))
            linkage = self.take().text if token.text in ("export", "extern") else None
            if self.token.text in ("const", "var") and self.token.kind == KEYWORD:
                return self.variable(token.start, linkage)
            if self.token.text in ("fn", "task") and self.token.kind == KEYWORD:
                return self.function(token.start, linkage)
            if token.text == "inline" and self.ahead().text == "fn":
                self.take()
                return replace(self.function(token.start, None), is_inline=True)
        if self.is_("}"):
            raise CslError(self.span_of(token), 'this "}" closes nothing')
        hint = "statements stand in a function, a task or a comptime block"
        raise self.unexpected("expected a declaration (param, const, var, fn, task, comptime or layout)", hint=hint)

    # param = "param" name [":" type] ["=" expression] ";"
    def param(self) -> ast.ParamDecl:
        start = self.take().start
        name = self.name("the name of a parameter")
        kind = self.type() if self.accept(":") else None
        default = self.expression() if self.accept("=") else None
        self.expect(";", "after the parameter")
        return ast.ParamDecl(name=name, type=kind, default=default, span=self.span_from(start))

    # variable = ("const" | "var") name [":" type] attribute* ["=" expression] ";"
    def variable(self, start: int, linkage: str | None = None, is_comptime: bool = False) -> ast.VarDecl:
        is_const = self.take().text == "const"
        name = self.name("the name of a variable")
        kind = self.type() if self.accept(":") else None
        attributes = self.attributes(("align", "linkname", "linksection"))
        value = self.expression() if self.accept("=") else None
        self.expect(";", "after the declaration")
        return ast.VarDecl(
            name=name, is_const=is_const, is_comptime=is_comptime, linkage=linkage, type=kind, value=value,
            span=self.span_from(start), **attributes,
        )  # fmt: skip

    # attribute = ("align" | "linkname" | "linksection") "(" expression ")"
    def attributes(self, known: tuple[str, ...]) -> dict[str, ast.Expr]:
        found = {}
        while any(self.is_(word) for word in known):
            word = self.take().text
            found[word] = self.parenthesised(f"the argument of {word}")
        return found

    # function = ("fn" | "task") name "(" [parameter ("," parameter)*] ")" attribute* [type] attribute* (block | ";")
    def function(self, start: int, linkage: str | None) -> ast.FunctionDecl:
        is_task = self.take().text == "task"
        name = self.name("the name of a task" if is_task else "the name of a function")
        self.expect("(", "before the parameters")
        parameters = []
        while not self.is_(")"):
            parameters.append(self.parameter())
            if not self.accept(","):
                break
        self.expect(")", "after the parameters")
        self.unique([(p.name, p.span) for p in parameters], "parameter")
        if self.is_("->"):
            hint = "the type of the result follows the parameters without an arrow"
            self.report(self.unexpected("expected a type", hint=hint))
            self.take()
        words = ("linkname", "linksection")
        attributes = self.attributes(words)
        result = None if self.is_("{") or self.is_(";") else self.type()
        attributes |= self.attributes(words)
        body = None
        if linkage == "extern":
            self.expect(";", "after an extern function")
        else:
            body = self.block(f"of {name}")
        return ast.FunctionDecl(
            name=name, is_task=is_task, parameters=tuple(parameters), result=result, body=body, linkage=linkage,
            linkname=attributes.get("linkname"), span=self.span_from(start),
        )  # fmt: skip

    def unique(self, names: list[tuple[str, Span]], what: str) -> None:
        """Reports a name that is given twice."""
        first: dict[str, Span] = {}
        for name, span in names:
            if name in first:
                self.report(CslError(span, f'there are two {what}s "{name}"', ("the first is here", first[name])))
            first.setdefault(name, span)

    # parameter = ["comptime"] name ":" type
    def parameter(self) -> ast.Parameter:
        start = self.token.start
        is_comptime = self.accept("comptime")
        name = self.name("the name of a parameter")
        self.expect(":", f"and a type after the parameter {name}")
        kind = self.type()
        return ast.Parameter(name=name, type=kind, is_comptime=is_comptime, span=self.span_from(start))

    # --- statements -------------------------------------------------------------------------------------------------

    # block = "{" statement* "}"
    def block(self, context: str) -> ast.Block:
        start = self.expect("{", f"to begin the body {context}").start
        statements = []
        while not self.is_("}"):
            if self.token.kind == END:
                raise CslError(
                    Span(self.source_id, start, start + 1),
                    f'the body {context} has no closing "}}" before the file ends',
                )
            if self.begins_declaration() and self.begins_line():
                end = self.tokens[self.at - 1].end
                self.report(
                    CslError(
                        Span(self.source_id, start, start + 1),
                        f'the body {context} has no closing "}}"',
                        ("it should come before this declaration", self.span_of(self.token)),
                    )
                )
                return ast.Block(statements=tuple(statements), span=Span(self.source_id, start, end))
            before = self.at
            try:
                statements.append(self.statement())
            except CslError as error:
                self.report(error)
                self.recover(_STATEMENTS, before, top=False)
        self.take()
        return ast.Block(statements=tuple(statements), span=self.span_from(start))

    def statement(self) -> ast.Stmt:
        self.deeper()
        try:
            return self._statement()
        finally:
            self.depth -= 1

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.depth = 0
            raise self.unexpected(f"more than {MAX_DEPTH} levels of nesting")

    # statement = block | variable | if | while | for | switch | break | continue | return | comptime | assignment
    def _statement(self) -> ast.Stmt:
        token = self.token
        start = token.start
        if (
            token.kind == PUNCTUATION
            and token.text == "{"
            and not (self.ahead().text == "}" and self.ahead(2).text == ";")
        ):
            return self.block("of this block")
        label = None
        if self.at_labeled_block():
            return ast.ExprStmt(value=self.labeled_block(), span=self.span_from(start))
        if token.kind == NAME and self.ahead().text == ":" and self.ahead(2).kind == KEYWORD:
            label = self.take().text
            self.take()
            token = self.token
        if token.kind == KEYWORD:
            inline = token.text == "inline"
            word = self.ahead().text if inline else token.text
            if word in ("while", "for"):
                if inline:
                    self.take()
                return self.while_(start, label, inline) if word == "while" else self.for_(start, label, inline)
            if label is not None:
                raise self.unexpected("expected a loop after a label")
            if word in ("const", "var"):
                return self.variable(start)
            if word == "if":
                return self.if_()
            if word == "switch":
                operand, prongs = self.switch()
                self.accept(";")
                return ast.Switch(operand=operand, prongs=prongs, span=self.span_from(start))
            if word == "comptime" and self.ahead().text == "{":
                self.take()
                block = self.block("of comptime code")
                return ast.ComptimeBlock(block=block, span=self.span_from(start))
            if word == "comptime" and self.ahead().text in ("var", "const"):
                self.take()
                return self.variable(start, is_comptime=True)
            if word in ("break", "continue", "return"):
                node = self.leave()
                self.expect(";", f"after {word}")
                return node
        node = self.assignment()
        if not isinstance(node, ast.ExprStmt) or not isinstance(node.value, ast.SwitchExpr):
            self.expect(";", "after the statement")
        return node

    # labeled_block = name ":" block
    def labeled_block(self) -> ast.LabeledBlock:
        start = self.token.start
        label = self.take().text
        self.take()
        block = self.block("of this block")
        return ast.LabeledBlock(label=label, block=block, span=self.span_from(start))

    def at_labeled_block(self) -> bool:
        return self.token.kind == NAME and self.ahead().text == ":" and self.ahead(2).text == "{"

    # leave = "break" [":" name [expression]] | "continue" [":" name] | "return" [expression]
    def leave(self) -> ast.Break | ast.Continue | ast.Return:
        token = self.take()
        if token.text == "return":
            value = None if self.is_(";") or self.is_(",") or self.is_("}") else self.expression()
            return ast.Return(value=value, span=self.span_from(token.start))
        label = self.name("the label of a loop or block") if self.accept(":") else None
        if token.text == "continue":
            return ast.Continue(label=label, span=self.span_from(token.start))
        has_value = label is not None and not (self.is_(";") or self.is_(",") or self.is_("}"))
        value = self.expression() if has_value else None
        return ast.Break(label=label, value=value, span=self.span_from(token.start))

    # assignment = expression [("=" | "+=" | ...) expression]
    def assignment(self) -> ast.Assign | ast.ExprStmt:
        start = self.token.start
        target = self.expression()
        if self.token.kind == PUNCTUATION and self.token.text in _ASSIGNMENTS:
            operator = self.take().text
            value = self.expression()
            return ast.Assign(operator=operator, target=target, value=value, span=self.span_from(start))
        return ast.ExprStmt(value=target, span=self.span_from(start))

    # if = "if" "(" expression ")" statement ["else" statement]
    def if_(self) -> ast.If:
        start = self.take().start
        condition = self.parenthesised("the condition of if")
        then = self.branch()
        otherwise = self.branch() if self.accept("else") else None
        return ast.If(condition=condition, then=then, otherwise=otherwise, span=self.span_from(start))

    def branch(self) -> ast.Stmt:
        """A statement; before `else` a plain one may lack its semicolon."""
        if self.token.kind == KEYWORD or self.is_("{"):
            return self.statement()
        self.deeper()
        node = self.assignment()
        self.depth -= 1
        if not self.is_("else"):
            self.expect(";", "after the statement")
        return node

    def parenthesised(self, what: str) -> ast.Expr:
        self.expect("(", f"before {what}")
        value = self.expression()
        self.expect(")", f"after {what}")
        return value

    # while = "while" "(" expression ")" [":" "(" assignment ")"] statement
    def while_(self, start: int, label: str | None, inline: bool) -> ast.While:
        self.take()
        condition = self.parenthesised("the condition of while")
        step = None
        if self.accept(":"):
            self.expect("(", "before the step of while")
            step = self.assignment()
            self.expect(")", "after the step of while")
        body = self.statement()
        return ast.While(
            condition=condition, step=step, body=body, label=label, is_inline=inline, span=self.span_from(start)
        )

    # for = "for" "(" expression ")" "|" name ["," name] "|" statement
    def for_(self, start: int, label: str | None, inline: bool) -> ast.For:
        self.take()
        iterable = self.parenthesised("what for goes over")
        self.expect("|", "and a name for the element after for (...)")
        element = self.name("a name for the element")
        index = self.name("a name for the index") if self.accept(",") else None
        self.expect("|", "after the names of for")
        body = self.statement()
        return ast.For(
            iterable=iterable, element=element, index=index, body=body, label=label, is_inline=inline,
            span=self.span_from(start),
        )  # fmt: skip

    # switch = "switch" "(" expression ")" "{" [prong ("," prong)* [","]] "}"
    def switch(self) -> tuple[ast.Expr, tuple[ast.Prong, ...]]:
        self.take()
        operand = self.parenthesised("what switch looks at")
        self.expect("{", "before the prongs of switch")
        prongs = []
        while not self.is_("}"):
            prongs.append(self.prong())
            if not self.accept(",") and not isinstance(prongs[-1].body, ast.Block):
                break
        self.expect("}", "after the prongs of switch")
        return operand, tuple(prongs)

    # prong = ("else" | value ("," value)*) "=>" (block | leave | assignment);  value = expression ["..." expression]
    def prong(self) -> ast.Prong:
        start = self.token.start
        values: list[ast.Expr] = []
        is_else = self.accept("else")
        while not is_else:
            first = self.token.start
            value = self.expression()
            if self.accept("..."):
                high = self.expression()
                value = ast.Range(low=value, high=high, span=self.span_from(first))
            values.append(value)
            if not self.accept(",") or self.is_("=>"):
                break
        self.expect("=>", "after the values of a prong")
        body: ast.Stmt | ast.Expr
        if self.is_("{") and self.ahead().text != "}":
            body = self.block("of the prong")
        elif self.token.kind == KEYWORD and self.token.text in ("return", "break", "continue"):
            body = self.leave()
        else:
            node = self.assignment() if not self.is_("{") else self.block("of the prong")
            body = node.value if isinstance(node, ast.ExprStmt) else node
        return ast.Prong(values=tuple(values), is_else=is_else, body=body, span=self.span_from(start))

    # --- expressions ------------------------------------------------------------------------------------------------

    def expression(self) -> ast.Expr:
        self.deeper()
        try:
            return self.binary(1, braces=True)
        finally:
            self.depth -= 1

    # type = expression without a struct literal at its end, so that a body may follow
    def type(self) -> ast.Expr:
        self.deeper()
        try:
            return self.binary(4, braces=False)
        finally:
            self.depth -= 1

    # binary = prefix (operator prefix)*
    def binary(self, level: int, braces: bool) -> ast.Expr:
        start = self.token.start
        left = self.prefix(braces)
        while True:
            token = self.token
            own = _LEVELS.get(token.text, 0) if token.kind in (PUNCTUATION, KEYWORD) else 0
            if own < level or own == 0:
                return left
            self.take()
            self.check_operator(token)
            right = self.binary(own + 1, braces)
            left = ast.Binary(operator=token.text, left=left, right=right, span=self.span_from(start))
            if own == _COMPARISON and _LEVELS.get(self.token.text) == _COMPARISON and self.token.kind == PUNCTUATION:
                raise self.unexpected('comparisons do not chain: write "a < b and b < c"')

    def check_operator(self, token: Token) -> None:
        """Refuses operators of other languages that would be read as two of CSL's."""
        following = self.token
        pair = token.text + following.text
        if following.start == token.end and pair in _FOREIGN:
            span = Span(self.source_id, token.start, following.end)
            raise CslError(span, f'there is no operator "{pair}"', f"write {_FOREIGN[pair]}")

    # prefix = ("-" | "~" | "!" | "&" | "comptime" | "*" ["const"]) prefix | postfix
    def prefix(self, braces: bool) -> ast.Expr:
        token = self.token
        start = token.start
        if token.kind == PUNCTUATION and token.text in ("-", "~", "!", "&", "*"):
            self.deeper()
            self.take()
            if token.text == "*":
                is_const = self.accept("const")
                target = self.prefix(braces=False)
                node: ast.Expr = ast.PointerType(
                    is_many=False, is_const=is_const, target=target, span=self.span_from(start)
                )
            else:
                operand = self.prefix(braces)
                if token.text == "&":
                    node = ast.AddressOf(operand=operand, span=self.span_from(start))
                else:
                    node = ast.Unary(operator=token.text, operand=operand, span=self.span_from(start))
            self.depth -= 1
            return node
        if token.kind == KEYWORD and token.text == "comptime":
            self.take()
            operand = self.expression()
            return ast.ComptimeExpr(operand=operand, span=self.span_from(start))
        return self.postfix(braces)

    # postfix = primary ("(" arguments ")" | "[" expressions "]" | "." name | ".*" | struct body)*
    def postfix(self, braces: bool) -> ast.Expr:
        start = self.token.start
        node = self.primary(braces)
        while self.token.kind == PUNCTUATION:
            text = self.token.text
            if text == "(":
                arguments = self.arguments()
                node = ast.Call(function=node, arguments=arguments, span=self.span_from(start))
            elif text == "[":
                self.take()
                indices = self.listed("]", "the indices")
                node = ast.Index(base=node, indices=indices, span=self.span_from(start))
            elif text == ".*":
                self.take()
                node = ast.Dereference(base=node, span=self.span_from(start))
            elif text == "." and self.ahead().text != "{":
                self.take()
                name = self.take().text if self.token.kind in (NAME, KEYWORD) else self.name("the name of a field")
                node = ast.Field(base=node, name=name, span=self.span_from(start))
            elif text == "{" and braces and isinstance(node, ast.Name | ast.Field | ast.Call | ast.StructType):
                node = self.literal_body(node, start)
            else:
                break
        return node

    def arguments(self) -> tuple[ast.Expr, ...]:
        self.expect("(", "before the arguments")
        return self.listed(")", "the arguments")

    def listed(self, end: str, what: str) -> tuple[ast.Expr, ...]:
        """Expressions with commas up to `end`, which is taken."""
        values = []
        while not self.is_(end):
            values.append(self.expression())
            if not self.accept(","):
                break
        self.expect(end, f"after {what}")
        return tuple(values)

    # struct body = "{" ("." name "=" expression),* "}" | "{" expression,* "}"
    def literal_body(self, kind: ast.Expr | None, start: int) -> ast.StructLiteral | ast.TupleLiteral:
        self.take()
        if self.is_(".") and self.ahead().kind in (NAME, KEYWORD) and self.ahead(2).text == "=":
            fields = []
            while not self.is_("}"):
                first = self.expect(".", "before the name of a field").start
                name = self.take().text if self.token.kind in (NAME, KEYWORD) else self.name("the name of a field")
                self.expect("=", f"and a value after .{name}")
                value = self.expression()
                fields.append(ast.FieldInit(name=name, value=value, span=self.span_from(first)))
                if not self.accept(","):
                    break
            self.expect("}", "after the fields")
            return ast.StructLiteral(type=kind, fields=tuple(fields), span=self.span_from(start))
        elements = self.listed("}", "the elements")
        if kind is not None and not elements and not isinstance(kind, ast.ArrayType):
            return ast.StructLiteral(type=kind, fields=(), span=self.span_from(start))
        return ast.TupleLiteral(type=kind, elements=elements, span=self.span_from(start))

    def primary(self, braces: bool) -> ast.Expr:
        token = self.token
        start = token.start
        span = Span(self.source_id, start, token.end)
        if self.at_labeled_block():
            return self.labeled_block()
        if token.kind == NAME:
            self.take()
            return ast.Name(text=token.text, span=span)
        if token.kind == INT:
            self.take()
            return ast.IntLiteral(value=int(token.value), span=span)
        if token.kind == FLOAT:
            self.take()
            return ast.FloatLiteral(text=str(token.value), span=span)
        if token.kind == STRING:
            self.take()
            return ast.StringLiteral(value=str(token.value), span=span)
        if token.kind == BUILTIN:
            self.take()
            arguments = self.arguments()
            return ast.BuiltinCall(name=token.text, arguments=arguments, span=self.span_from(start))
        if token.kind == KEYWORD:
            return self.keyword(token, braces)
        if token.text == "(":
            self.take()
            inner = self.expression()
            self.expect(")", "after the expression")
            return inner
        if token.text == "." and self.ahead().text == "{":
            self.take()
            return self.literal_body(None, start)
        if token.text == "{" and self.ahead().text == "}":
            self.take()
            self.take()
            return ast.StructLiteral(type=None, fields=(), is_void=True, span=self.span_from(start))
        if token.text == "[":
            return self.array(braces)
        if token.text == "|":
            return self.access()
        raise self.unexpected("expected an expression")

    # array = "[" "*" "]" ["const"] prefix | "[" expressions "]" prefix [struct body]
    def array(self, braces: bool) -> ast.Expr:
        start = self.take().start
        if self.is_("*") and self.ahead().text == "]":
            self.take()
            self.take()
            is_const = self.accept("const")
            target = self.prefix(braces=False)
            return ast.PointerType(is_many=True, is_const=is_const, target=target, span=self.span_from(start))
        extents = self.listed("]", "the extents of an array type")
        if not extents:
            raise self.unexpected('expected an extent in "[...]"')
        element = self.prefix(braces=False)
        kind = ast.ArrayType(extents=extents, element=element, span=self.span_from(start))
        return self.literal_body(kind, start) if braces and self.is_("{") else kind

    # access = "|" name,* "|" "{" expression,* "}" "->" expression
    def access(self) -> ast.AccessLambda:
        start = self.take().start
        variables = []
        while not self.is_("|"):
            variables.append(self.name("the name of an index"))
            if not self.accept(","):
                break
        self.expect("|", "after the names of the indices")
        self.expect("{", "before the extents")
        extents = self.listed("}", "the extents")
        self.expect("->", "before what is accessed")
        body = self.expression()
        return ast.AccessLambda(variables=tuple(variables), extents=extents, body=body, span=self.span_from(start))

    def keyword(self, token: Token, braces: bool) -> ast.Expr:
        start, text = token.start, token.text
        if text in ("true", "false"):
            self.take()
            return ast.BoolLiteral(value=text == "true", span=self.span_from(start))
        if text == "anytype":
            self.take()
            return ast.Name(text=text, span=self.span_from(start))
        if text == "if":
            # if expression = "if" "(" expression ")" expression ["else" expression]
            self.take()
            condition = self.parenthesised("the condition of if")
            then = self.expression()
            otherwise = self.expression() if self.accept("else") else None
            return ast.IfExpr(condition=condition, then=then, otherwise=otherwise, span=self.span_from(start))
        if text == "switch":
            operand, prongs = self.switch()
            return ast.SwitchExpr(operand=operand, prongs=prongs, span=self.span_from(start))
        if text in ("fn", "task"):
            return self.function_type()
        if text == "enum":
            return self.enum()
        if text in ("struct", "union", "packed", "extern"):
            return self.struct()
        raise self.unexpected("expected an expression")

    # function type = ("fn" | "task") "(" type,* ")" type
    def function_type(self) -> ast.FunctionType:
        token = self.take()
        self.expect("(", f"after {token.text}")
        parameters = []
        while not self.is_(")"):
            if self.token.kind == NAME and self.ahead().text == ":":  # a name is allowed and says nothing
                self.take()
                self.take()
            parameters.append(self.type())
            if not self.accept(","):
                break
        self.expect(")", "after the types of the parameters")
        result = self.prefix(braces=False)
        return ast.FunctionType(
            is_task=token.text == "task", parameters=tuple(parameters), result=result, span=self.span_from(token.start)
        )

    # enum = "enum" ["(" type ")"] "{" (name ["=" expression]),* "}"
    def enum(self) -> ast.EnumType:
        start = self.take().start
        base = None
        if self.accept("("):
            base = self.type()
            self.expect(")", "after the type of the enum")
        self.expect("{", "before the members of the enum")
        members, spans = [], []
        while not self.is_("}"):
            spans.append(self.span_of(self.token))
            name = self.name("the name of a member")
            members.append((name, self.expression() if self.accept("=") else None))
            if not self.accept(","):
                break
        self.expect("}", "after the members of the enum")
        self.unique([(name, span) for (name, _), span in zip(members, spans, strict=True)], "member")
        return ast.EnumType(base=base, members=tuple(members), span=self.span_from(start))

    # struct = ["packed" | "extern"] ("struct" | "union") "{" (name ":" type ["=" expression]),* "}"
    def struct(self) -> ast.StructType:
        start = self.token.start
        words = [self.take().text]
        if words[0] in ("packed", "extern"):
            if not (self.is_("struct") or self.is_("union")):
                raise self.unexpected(f'expected "struct" or "union" after {words[0]}')
            words.append(self.take().text)
        self.expect("{", "before the fields")
        fields = []
        while not self.is_("}"):
            first = self.token.start
            name = self.name("the name of a field")
            self.expect(":", f"and a type after the field {name}")
            kind = self.type()
            default = self.expression() if self.accept("=") else None
            fields.append(ast.StructField(name=name, type=kind, default=default, span=self.span_from(first)))
            if not (self.accept(",") or self.accept(";")):
                break
        self.expect("}", "after the fields")
        self.unique([(f.name, f.span) for f in fields], "field")
        return ast.StructType(kind=" ".join(words), fields=tuple(fields), span=self.span_from(start))


_FOREIGN = {"&&": '"and"', "||": '"or"', "++": '"+= 1"', "--": '"-= 1"'}
_HINTS = {
    (")", "="): 'to compare, write "=="',
    (";", ":"): "a label stands before a loop; a type stands after a name in const, var and param",
}
_GO_ON = frozenset((";", ")", "]", ","))
"""After a closing brace these belong to what holds the mistake."""
_STATEMENTS = frozenset(
    ("const", "var", "if", "while", "for", "switch", "break", "continue", "return", "comptime", "inline")
)


def _shown(token: Token) -> str:
    return "@" + token.text if token.kind == BUILTIN else token.text
