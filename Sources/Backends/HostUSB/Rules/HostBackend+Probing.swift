// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import USB

/// Selection of the device that a rule matches, while devices connect and disconnect.
extension HostBackend {
    // MARK: - Connection

    /// Probes for a device that the rule matches, unless one is selected.
    ///
    /// The kernel may still be busy with a new device, so ``jobs`` reads names and opens nodes.
    func probe() {
        guard bus != nil, current == nil else { return }
        if isProbing {
            needsReprobe = true
            return
        }
        let names = candidates().map { HostDeviceName(withoutStrings: $0) }
        guard !names.isEmpty else { return completeStartWithoutDevice() }
        isProbing = true
        jobs.run {
            names.map { name in
                SystemFiles.waitForDrivers(of: name.node)
                return name.addingStrings()
            }
        } completion: { [weak self] names in
            self?.select(from: names)
        }
    }

    private func candidates() -> [LibUSBDevice] {
        context.devices().filter { device in
            !device.isHub && rule.mayMatch(HostDeviceName(withoutStrings: device))
                && !closing.contains { $0.node.id == device.id }
        }
    }

    private func select(from names: [HostDeviceName]) {
        isProbing = false
        guard bus != nil else { return }
        let matching = names.filter { rule.matches($0) }
        // Devices may have been connected and disconnected meanwhile.
        let present = candidates().compactMap { node in
            matching.first { $0.bus == node.bus && $0.address == node.address }.map { (node, $0) }
        }
        if matching.count > 1 && startCompletion != nil {
            fail(Diagnosis.ambiguous(rule, candidates: matching))
        } else if present.isEmpty {
            completeStartWithoutDevice()
        } else {
            openFirst(of: present)
        }
        reprobeIfNeeded()
    }

    private func reprobeIfNeeded() {
        guard needsReprobe, !isProbing else { return }
        needsReprobe = false
        probe()
    }

    /// Opens the first device that other programs and rules do not use.
    private func openFirst(of present: [(node: LibUSBDevice, name: HostDeviceName)]) {
        isProbing = true
        let choices = present.map { (opener: $0.node.opener, name: $0.name) }
        jobs.run {
            FirstOpened(of: choices) { choice throws(OpeningError) in
                try HostDeviceSession.open(choice.opener, name: choice.name)
            }
        } completion: { [weak self] first in
            guard let self else { return }
            isProbing = false
            // This closure retains the devices, whose references the openers need.
            let (node, name) = present[first.index]
            if present.count > 1, case .success = first.result {
                logger.notice("\(rule) matches \(present.count) devices; using \(name.portRule)")
            }
            deviceOpened(node, name, first.result)
            reprobeIfNeeded()
        }
    }

    private func deviceOpened(
        _ node: LibUSBDevice, _ name: HostDeviceName,
        _ result: Result<LibUSBHandle.Opened, OpeningError>
    ) {
        do throws(OpeningError) {
            let opened = try result.get()
            guard bus != nil, current == nil else { return opened.pointer.close() }
            // The backend has not observed a disconnection of this device, which was not selected.
            guard context.has(node) else {
                opened.pointer.close()
                return reportDisconnection(of: name)
            }
            do throws(BackendError) { claim(try makeSession(node, name, opened)) } catch {
                fail(error)
            }
        } catch {
            guard bus != nil else { return }
            openingAttempts += 1
            let isAccessMissing = error == .failed(.access) && startCompletion == nil
            if isAccessMissing, openingAttempts < Self.accessAttempts {
                probeTimer = loop.schedule(at: loop.now + Self.accessRetryDelay) { [weak self] in
                    self?.probe()
                }
            } else {
                fail(Diagnosis.cannotOpen(name, error))
            }
        }
    }

    /// Adopts a device that another process has opened, without blocking the loop.
    func adoptLater(_ descriptor: consuming OwnedDescriptor) {
        isProbing = true
        let number = descriptor.rawValue
        let received = ReceivedDescriptor(descriptor)
        let wrapper = context.wrapper
        jobs.run {
            Result { () throws(LibUSBError) in try wrapper.wrap(number) }
        } completion: { [weak self] result in
            guard let self else { return }
            do throws(LibUSBError) {
                let pointer = try result.get()
                guard let node = context.device(of: pointer) else {
                    pointer.close()
                    throw .noDevice
                }
                lock(node, isListed: context.has(node), pointer, number, received)
            } catch {
                isProbing = false
                fail(Diagnosis.notANode(rule, error))
            }
        }
    }

    /// Locks the node of an adopted device and reads the device's strings.
    ///
    /// - Parameter isListed: whether the device is in libusb's own list, so that its disconnection
    ///   is reported.
    private func lock(
        _ node: LibUSBDevice, isListed: Bool, _ pointer: LibUSBHandle.Pointer, _ number: CInt,
        _ received: ReceivedDescriptor
    ) {
        let name = HostDeviceName(withoutStrings: node)
        jobs.run {
            (name.addingStrings(), ReceivedNode(number, path: name.node))
        } completion: { [weak self] name, receivedNode in
            guard let self else { return }
            isProbing = false
            guard bus != nil else { return pointer.close() }
            guard !isListed || context.has(node) else {
                pointer.close()
                return reportDisconnection(of: name)
            }
            do throws(BackendError) {
                claim(try adopt(node, name, pointer, receivedNode, received))
            } catch {
                fail(error)
            }
        }
    }

    private func claim(_ session: HostDeviceSession) {
        current = session
        session.claim { [weak self] result in
            guard let self, current === session else { return }
            do throws(BackendError) {
                guard let bus else { return }
                try attach(session, to: bus, problems: result.get())
                let name = session.name
                logger.notice(
                    "\(rule): \(name.specification) (\(name.displayName)) is plugged in")
                completeStart()
            } catch {
                current = nil
                fail(error, closing: session)
                // The interfaces of another matching device may be free.
                probe()
            }
        }
    }

    /// Attaches a device whose interfaces are claimed, and logs a warning for each problem.
    func attach(
        _ session: HostDeviceSession, to bus: any USBBus, problems: [String]
    ) throws(BackendError) {
        let specification = session.name.specification
        for problem in problems {
            logger.warning("\(specification): \(problem); the guest cannot use it")
        }
        if let limit = session.device.descriptorFilter.streamLimit {
            logger.warning("\(specification): \(limit.warning)")
        }
        session.device.whenDisconnected = { [weak self, weak session] in
            if let self, let session { sessionDisconnected(session) }
        }
        do throws(AttachError) {
            try bus.attach(session.device)
        } catch {
            throw BackendError(cannotAttach: specification, error)
        }
        isAttached = true
    }

    // MARK: - Disconnection

    /// Keeps a former device until it is closed and disconnected.
    func keepUntilClosed(_ session: HostDeviceSession) {
        closing.append(session)
        session.whenClosed = { [weak self] in self?.removeDisconnected() }
    }

    /// Closes a device that is still connected, although its transfers failed as if it were
    /// disconnected: the kernel ends transfers in this way when it releases their interface. The
    /// device may be selected again after ``accessRetryDelay``.
    private func closeForReturn(_ session: HostDeviceSession) {
        closing.append(session)
        session.whenClosed = { [weak self, weak session] in
            guard let self else { return }
            removeDisconnected()
            guard rule.isPersistent, bus != nil else { return }
            returnTimer = loop.schedule(at: loop.now + Self.accessRetryDelay) { [weak self] in
                self?.closing.removeAll { $0 === session }
                self?.probe()
            }
        }
        session.shutDown { _ in }
    }

    private func removeDisconnected() {
        guard closing.contains(where: \.isClosed) else { return }
        closing.removeAll { $0.isClosed && !context.has($0.node) }
    }

    /// Closes the selected device after its disconnection.
    private func sessionDisconnected(_ session: HostDeviceSession) {
        guard session === current else { return }
        current = nil
        isAttached = false
        if context.has(session.node) {
            closeForReturn(session)
        } else {
            keepUntilClosed(session)
            session.closeWhenIdle()
        }
        reportDisconnection(of: session.name)
    }

    private func reportDisconnection(of device: HostDeviceName) {
        let name = "\(device.specification) (\(device.displayName))"
        guard rule.isPersistent else {
            if startCompletion != nil { return fail(BackendError("\(name) was disconnected")) }
            logger.warning("\(name) was disconnected")
            return
        }
        logger.warning("\(name) was disconnected; \(rule) waits for a device")
        // The device may be connected again already.
        probeTimer = loop.schedule(at: loop.now) { [weak self] in self?.probe() }
        completeStart()
    }
}

extension HostBackend: LibUSBContextObserver {
    func devicesConnected() {
        guard rule.isPersistent else { return }
        openingAttempts = 0
        probe()
    }

    func deviceDisconnected(_ device: LibUSBDevice.ID) {
        if let current, current.node.id == device {
            if isAttached {
                current.device.deviceDisconnected()
            } else {
                sessionDisconnected(current)
            }
        }
        removeDisconnected()
    }
}

/// The first of several devices that can be opened, or the error if none can.
struct FirstOpened<Opened: Sendable>: Sendable {
    let index: Int
    let result: Result<Opened, OpeningError>

    /// - Parameter choices: at least one.
    init<Choice>(
        of choices: [Choice], opening: (Choice) throws(OpeningError) -> Opened
    ) {
        var failures: [(index: Int, error: OpeningError)] = []
        for (index, choice) in choices.enumerated() {
            do throws(OpeningError) {
                result = .success(try opening(choice))
                self.index = index
                return
            } catch {
                failures.append((index, error))
            }
        }
        // Access is worth another attempt, because udev may grant it; a lock remains.
        let failure = failures.first { $0.error == .failed(.access) } ?? failures[0]
        (index, result) = (failure.index, .failure(failure.error))
    }
}
