"""Questions about users, sessions and secrets."""

from services.storage.routes.table import Route, route
from services.storage.shell.accounts import Accounts
from shared import channels as c


def routes(accounts: Accounts) -> list[Route]:
    """Return the routes."""
    return [
        route(c.LOGIN, accounts.login),
        route(c.LOGOUT, accounts.logout),
        route(c.VERIFY, accounts.verify),
        route(c.USER_CREATE, accounts.create_user),
        route(c.USER_LIST, accounts.list_users),
        route(c.USER_GET, accounts.get_user),
        route(c.USER_UPDATE, accounts.update_user),
        route(c.USER_DELETE, accounts.delete_user),
        route(c.PASSWORD_CHANGE, accounts.change_password),
        route(c.SECRET_PUT, accounts.put_secret),
        route(c.SECRET_GET, accounts.get_secret),
    ]
