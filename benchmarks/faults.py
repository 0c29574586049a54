"""Small faults for `mutation.py`: one operator, constant, condition, call or return of a module at a time."""

import ast
import copy

_OTHER = "Add:Sub Sub:Add Mult:Div Div:Mult Pow:Mult FloorDiv:Mult Mod:Mult BitAnd:BitOr BitOr:BitAnd MatMult:Mult"
BINARY = {getattr(ast, a): getattr(ast, b) for a, b in (pair.split(":") for pair in _OTHER.split())}
_OTHERS = "Lt:LtE,Gt LtE:Lt,GtE Gt:GtE,Lt GtE:Gt,LtE Eq:NotEq NotEq:Eq Is:IsNot IsNot:Is In:NotIn NotIn:In"
COMPARE = {
    getattr(ast, p.split(":")[0]): [getattr(ast, b) for b in p.split(":")[1].split(",")] for p in _OTHERS.split()
}
#: Methods without arguments whose removal changes no value.
HARMLESS = {"detach", "clone", "contiguous", "cpu", "items", "keys", "values"}


class Mutator(ast.NodeTransformer):
    """Offers every small fault of a module in turn; plants number `target`, or only counts them."""

    def __init__(self, target: int = -1) -> None:
        self.target, self.count = target, 0
        self.found: list[tuple[int, int, str, str]] = []  # first line, last line, name, change
        self._names: list[str] = []
        self._statement: ast.stmt | None = None

    def _offer(self, node: ast.AST, *faults: ast.AST) -> ast.AST:
        planted = node
        for fault in faults:
            fault = ast.fix_missing_locations(ast.copy_location(fault, node))
            change = f"{_short(node)} -> {_short(fault)}"
            if len(_short(node)) < 20 and self._statement and self._statement is not node:  # say where
                change += f" in {_short(self._statement)}"
            last = (self._statement or node).end_lineno
            self.found.append((node.lineno, last, ".".join(self._names), change))
            if self.count == self.target:
                planted = fault
            self.count += 1
        return planted

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.stmt):
            self._statement = None if hasattr(node, "body") else node
        return super().visit(node)

    def _scope(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        self._names.append(node.name)
        if isinstance(node, ast.FunctionDef):
            node.args.defaults = [self.visit(d) for d in node.args.defaults]
            node.args.kw_defaults = [d and self.visit(d) for d in node.args.kw_defaults]
        node.body = [self.visit(child) for child in node.body]
        self._names.pop()
        return node

    visit_ClassDef = visit_FunctionDef = _scope  # decorators and annotations are left alone

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Raise(self, node: ast.AST) -> ast.AST:
        return node  # the words of a message are not behaviour

    visit_JoinedStr = visit_Import = visit_ImportFrom = visit_Raise

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):  # a docstring
            return node
        planted = self._offer(node, ast.Pass())
        return self.generic_visit(node) if planted is node else planted

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node
        self._statement = None
        node.test = self._offer(node.test, ast.UnaryOp(ast.Not(), copy.deepcopy(node.test)))
        return self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
            return node
        planted = self._offer(node, ast.Return(ast.Constant(None)))
        return self.generic_visit(node) if planted is node else planted

    def _expression(self, node: ast.AST) -> ast.AST:
        node = self.generic_visit(node)
        return self._offer(node, *_faults(node))

    visit_IfExp = visit_BinOp = visit_AugAssign = visit_UnaryOp = visit_BoolOp = visit_Compare = visit_Call = (
        _expression
    )
    visit_Constant = _expression


def _faults(node: ast.AST) -> list[ast.AST]:
    """What an expression is replaced by."""
    match node:
        case ast.IfExp():
            return [ast.IfExp(node.test, node.orelse, node.body)]
        case ast.BinOp() if type(node.op) in BINARY:
            return [ast.BinOp(node.left, BINARY[type(node.op)](), node.right)]
        case ast.AugAssign() if type(node.op) in BINARY:
            return [ast.AugAssign(node.target, BINARY[type(node.op)](), node.value)]
        case ast.UnaryOp():
            return [node.operand]
        case ast.BoolOp():
            return [ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)]
        case ast.Compare():
            return [ast.Compare(node.left, [o(), *node.ops[1:]], node.comparators) for o in COMPARE[type(node.ops[0])]]
        case ast.Call(func=ast.Attribute() as f, args=[], keywords=[]) if f.attr not in HARMLESS:
            return [f.value]
        case ast.Constant(value=bool(v)):
            return [ast.Constant(not v)]
        case ast.Constant(value=int(v) | float(v)):
            return [ast.Constant(v + 1), *([ast.Constant(0 * v)] if v else [])]
    return []


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 70 else text[:67] + "..."
