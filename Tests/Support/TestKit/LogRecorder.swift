// SPDX-License-Identifier: Apache-2.0

public import Logging
internal import Platform

/// A log handler that keeps each line as `level: message`.
public struct LogRecorder: LogHandler {
    /// The lines recorded so far; any thread may append.
    public final class Lines: Sendable {
        private let storage = Locked<[String]>([])

        public init() {}

        fileprivate func append(_ line: String) { storage.withLock { $0.append(line) } }

        public var all: [String] { storage.withLock { $0 } }
    }

    private let lines: Lines
    public var metadata: Logger.Metadata = [:]
    public var logLevel: Logger.Level

    public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    public func log(event: LogEvent) { lines.append("\(event.level): \(event.message)") }

    /// A logger whose lines from `level` on are kept.
    public static func make(
        level: Logger.Level = .debug
    ) -> (logger: Logger, lines: Lines) {
        let lines = Lines()
        let logger = Logger(label: "test") { _ in LogRecorder(lines: lines, logLevel: level) }
        return (logger, lines)
    }

    private init(lines: Lines, logLevel: Logger.Level) {
        self.lines = lines
        self.logLevel = logLevel
    }
}

extension Logger {
    /// A logger that drops every line.
    public static var silent: Logger { Logger(label: "test") { _ in SwiftLogNoOpLogHandler() } }
}
