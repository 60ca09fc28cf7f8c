// Shows the promised time as the reader's clock shows it; without this script it stays in UTC.
"use strict";

for (const time of document.querySelectorAll("time[datetime]")) {
  const moment = new Date(time.dateTime);
  const [day, clock] = time.children;
  const locally = (options) => new Intl.DateTimeFormat("en-GB", options).format(moment);
  const localDay = locally({ weekday: "long", day: "numeric", month: "long", year: "numeric" }).replace(",", "");
  const localClock = locally({ hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  if (moment.getTimezoneOffset() !== 0) {
    const utc = clock.textContent.replace("at ", "");
    const sameDay = localDay === day.textContent;
    clock.textContent = `at ${localClock} your time (${sameDay ? "" : `${day.textContent}, `}${utc})`;
    day.textContent = localDay;
  }
}
