"""Email by SMTP."""

from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

import aiosmtplib

from services.notifier.core import texts
from services.notifier.core.delivery import Outcome, Verdict, judge_mail
from services.notifier.settings import NotifierSettings
from shared.events import DeliveryRequested

_PORTS = {"none": 25, "starttls": 587, "tls": 465}


class EmailSender:
    """Sends plain text mail through one server, a connection for each."""

    def __init__(self, settings: NotifierSettings) -> None:
        self._settings = settings
        self._domain = parseaddr(settings.mail_from)[1].rpartition("@")[2] or "localhost"

    def host(self, request: DeliveryRequested) -> str:  # noqa: ARG002 - the port's shape
        """Return the mail server: all mail waits for the same one."""
        return f"smtp://{self._settings.smtp_host}"

    async def send(self, request: DeliveryRequested) -> Outcome:
        """Hand one mail to the server."""
        if self._settings.smtp_host is None:
            return Outcome(Verdict.HOPELESS, "no mail server is configured (WHERRY_SMTP_HOST)")
        try:
            message = self.message(request)
        except ValueError as error:
            return Outcome(Verdict.HOPELESS, f"not sent: {error}")
        try:
            _, answer = await self._hand_over(message)
        except aiosmtplib.SMTPRecipientsRefused as error:
            refused = error.recipients[0]
            return judge_mail(refused.code, texts.one_line(refused.message, 300))
        except aiosmtplib.SMTPAuthenticationError as error:
            # The operator's to mend, and no word about the recipient: worth another try whatever the code.
            return Outcome(Verdict.FAILED, f"the mail server did not accept wherry's own login ({error.code})")
        except aiosmtplib.SMTPResponseException as error:
            return judge_mail(error.code, texts.one_line(error.message, 300))
        except (aiosmtplib.SMTPException, OSError) as error:
            return Outcome(Verdict.FAILED, f"the mail server cannot be reached ({type(error).__name__})")
        return Outcome(Verdict.DELIVERED, f"the mail server took it: {texts.one_line(answer, 200)}")

    def message(self, request: DeliveryRequested) -> EmailMessage:
        """Return the mail. Its Message-ID is the same at every try, so that a repeat can be told.

        Raises:
            ValueError: an address or header cannot be written.

        """
        message = EmailMessage()
        message["From"] = self._settings.mail_from
        message["To"] = request.target
        message["Subject"] = texts.subject(request)
        message["Date"] = format_datetime(request.at)
        message["Message-ID"] = f"<{request.delivery_id}@{self._domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(texts.mail(request, self._settings.public_url))
        return message

    async def _hand_over(self, message: EmailMessage) -> tuple[object, str]:
        settings = self._settings
        return await aiosmtplib.send(
            message,
            hostname=settings.smtp_host,
            port=settings.smtp_port or _PORTS[settings.smtp_tls],
            username=settings.smtp_user or None,
            password=settings.smtp_password.get_secret_value()
            if settings.smtp_user and settings.smtp_password
            else None,
            use_tls=settings.smtp_tls == "tls",
            start_tls=settings.smtp_tls == "starttls",
            timeout=settings.smtp_timeout_s,
        )
