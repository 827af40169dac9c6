// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Logging
internal import SystemPackage

/// The log on standard error: lines of time, level, message and metadata.
struct ConsoleLog: LogHandler {
    var logLevel: Logger.Level
    var metadata: Logger.Metadata = [:]
    var metadataProvider: Logger.MetadataProvider?

    private let label: String
    private let isColoured: Bool

    init(label: String, level: Logger.Level) {
        self.label = label
        logLevel = level
        let isUnwanted = unsafe getenv("NO_COLOR") != nil
        isColoured = isatty(STDERR_FILENO) == 1 && !isUnwanted
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        var line = Self.timeOfDay()
        line += isColoured ? Self.coloured(event.level) : Self.word(event.level)
        if label != "usbvfiod" { line += "\(label): " }
        line += event.message.description
        var all = metadata
        if let more = metadataProvider?.get() { all.merge(more) { _, new in new } }
        if let more = event.metadata { all.merge(more) { _, new in new } }
        for (key, value) in all.sorted(by: { $0.key < $1.key }) { line += " \(key)=\(value)" }
        line += "\n"
        // An error of standard error cannot be reported anywhere.
        _ = try? FileDescriptor.standardError.writeAll(line.utf8)
    }

    /// The local time, with milliseconds.
    private static func timeOfDay() -> String {
        var now = timespec()
        var parts = unsafe tm()
        unsafe clock_gettime(CLOCK_REALTIME, &now)
        unsafe _ = localtime_r(&now.tv_sec, &parts)
        let clock = unsafe [parts.tm_hour, parts.tm_min, parts.tm_sec]
        return clock.map { padded(Int($0), 2) }.joined(separator: ":") + "."
            + padded(now.tv_nsec / 1_000_000, 3) + " "
    }

    private static func padded(_ number: Int, _ width: Int) -> String {
        let digits = String(number)
        return String(repeating: "0", count: max(width - digits.count, 0)) + digits
    }

    private static func word(_ level: Logger.Level) -> String {
        level.rawValue + String(repeating: " ", count: max(9 - level.rawValue.count, 1))
    }

    private static func coloured(_ level: Logger.Level) -> String {
        let colour =
            switch level {
            case .trace, .debug: "2"
            case .info: "0"
            case .notice: "32"
            case .warning: "33"
            case .error, .critical: "31"
            }
        return "\u{1b}[\(colour)m\(word(level))\u{1b}[0m"
    }
}
