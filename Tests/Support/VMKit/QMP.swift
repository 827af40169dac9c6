// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A client of QEMU's monitor, which attaches and detaches devices and types on keyboards.
public final class QMP {
    private let channel: Channel
    private var events: [String] = []

    init(path: String) throws {
        channel = try Channel(path: path, name: "QEMU's monitor")
        try execute("qmp_capabilities")
    }

    /// Runs a command and returns its result.
    @discardableResult
    public func execute(_ command: String, _ arguments: [String: Any] = [:]) throws -> Any? {
        let request: [String: Any] = ["execute": command, "arguments": arguments]
        let data = try JSONSerialization.data(withJSONObject: request)
        try channel.send(line: String(decoding: data, as: UTF8.self))
        let deadline = Deadline(.seconds(120))
        while let message = try message(before: deadline) {
            if let error = message["error"] { throw VMError("QEMU refused \(command): \(error)") }
            if let result = message["return"] { return result }
        }
        throw VMError("QEMU did not answer \(command)")
    }

    /// Waits for an event, which may have arrived before and not been waited for.
    public func wait(forEvent name: String, within limit: Duration = .seconds(120)) throws {
        let deadline = Deadline(limit)
        while true {
            if let index = events.firstIndex(of: name) {
                events.removeSubrange(...index)
                return
            }
            guard try message(before: deadline) != nil else {
                throw VMError("QEMU sent no \(name) within \(limit)")
            }
        }
    }

    /// Detaches the device with this ID, and waits for the DEVICE_DELETED event.
    public func unplug(_ device: String) throws {
        try execute("device_del", ["id": device])
        try wait(forEvent: "DEVICE_DELETED")
    }

    /// Presses and releases keys, one after the other, by QEMU's names: `a`, `ret`.
    public func type(_ keys: [String]) throws {
        for key in keys {
            for down in [true, false] {
                let event: [String: Any] = [
                    "type": "key",
                    "data": ["down": down, "key": ["type": "qcode", "data": key]],
                ]
                try execute("input-send-event", ["events": [event]])
            }
        }
    }

    private func message(before deadline: Deadline) throws -> [String: Any]? {
        guard let line = try channel.line(before: deadline) else { return nil }
        let message = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
        if let event = message?["event"] as? String { events.append(event) }
        return message ?? [:]
    }
}
